import sys; sys.path.insert(0,'/tmp/reader/lib')
import uuid
from commandbus_process import *
from commandbus_process import _arguments as A
from commandbus_process.postgres import _refusals as R, _advance as V
U=uuid.uuid4()
p=ProcessMetadata(domain="d",process_id=U,process_type="t",state={"card":"hunter2"})
try: A.sorted_statuses([p])
except Exception as e: print(type(e).__name__, 'hunter2' in str(e))
a,b=[ProcessAuditEntry(step_name="s",command_id=uuid.uuid4(),command_type="T") for _ in "ab"]
def row(e,same,name): return dict(step_name=name,command_id=e.command_id,command_type="T",command_data=None,sent_at='"2024-01-01T00:00:00+00:00"',reply_outcome=None,reply_data=None,received_at=None,compensates=None,same=same)
s=V.Step(p,None,[a,b],{})
for e in s._why_not_taken(None,[row(a,True,"s"),row(b,False,"other")]): print(e.is_same, str(e)[60:])
from commandbus_process.postgres import _listing as L
n=str(L.find_by_status(("WAITING",),frozenset({"key_domain","created_after"}))); print("created_after" in n)
