# SPDX-License-Identifier: Apache-2.0
"""Prints, for each module in the directories given, what its code imports
according to dis, and the module itself, compiled: a line of JSON each."""
import base64, dis, importlib.util, json, marshal, os, struct, sys


def imports(code):
    """Yields level, name and names taken of every IMPORT_NAME."""
    consts = []
    for i in dis.get_instructions(code):
        if i.opname in ("LOAD_CONST", "LOAD_SMALL_INT"):
            consts.append(i.argval)
        elif i.opname == "IMPORT_NAME":
            level, names = consts[-2:]
            yield {"level": level, "name": i.argval, "from": list(names or [])}


for dir in sys.argv[1:]:
    for name in sorted(os.listdir(dir)):
        path = os.path.join(dir, name)
        if not name.endswith(".py"):
            continue
        with open(path, "rb") as f:
            code = compile(f.read(), path, "exec", dont_inherit=True)
        pyc = importlib.util.MAGIC_NUMBER + struct.pack("<III", 0, 0, 0) + marshal.dumps(code)
        print(json.dumps({"path": path, "imports": list(imports(code)), "pyc": base64.b64encode(pyc).decode()}))
