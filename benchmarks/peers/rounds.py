"""What a worker process speaks: one JSON object a line, in and out. Standard library only: every environment has it.

In: {"task": NAME, "job": {…}, "save": PATH or null}. Out: {"seconds": …, "cpu": …}, or {"error": …}. A task prepares once for a
job (tokenizers, tensors: not counted) and is then timed each time it runs. With `save` its result, a numpy array, is
written, so that tools can be compared.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

Task = Callable[[dict[str, Any]], Callable[[], Any]]


def serve(tasks: dict[str, Task]) -> None:
    """Answer requests until the input ends."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print goes to stderr
    ready: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        key = json.dumps([request["task"], request["job"]], sort_keys=True)
        try:
            if key not in ready:
                ready[key] = tasks[request["task"]](request["job"])
            start, busy = time.perf_counter(), time.process_time()
            result = ready[key]()
            answer = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - busy}
            if request["save"]:
                import numpy as np

                np.save(request["save"], np.asarray(result))
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        out.write(json.dumps(answer) + "\n")
