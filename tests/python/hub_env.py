"""What huggingface_hub makes of the environment, one line of JSON for each setting: tests/golden/hub/env.json.

    python tests/python/hub_env.py > tests/golden/hub/env.json
"""

import json
import os
import subprocess
import sys

HOME = "/home/u"
CASES = [
    {},
    {"XDG_CACHE_HOME": "/x"},
    {"XDG_CACHE_HOME": ""},
    {"XDG_CACHE_HOME": "~/x"},
    {"HF_HOME": "/hf"},
    {"HF_HOME": "~/hf"},
    {"HF_HOME": "$BIG/hf", "BIG": "/big"},
    {"HF_HOME": "${BIG}/hf", "BIG": "/big"},
    {"HF_HOME": "$NONE/hf"},
    {"HF_HOME": "a/${NONE"},
    {"HF_HOME": ""},
    {"HF_HOME": "/hf/"},
    {"HF_HOME": "/hf", "XDG_CACHE_HOME": "/x"},
    {"HF_HUB_CACHE": "/c"},
    {"HF_HUB_CACHE": "~/c", "HF_HOME": "/hf"},
    {"HF_HUB_CACHE": ""},
    {"HUGGINGFACE_HUB_CACHE": "/old"},
    {"HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "/new"},
    {"HF_TOKEN": "hf_x"},
    {"HF_TOKEN": " hf_x\n"},
    {"HF_TOKEN": ""},
    {"HF_TOKEN": "  "},
    {"HUGGING_FACE_HUB_TOKEN": "hf_old"},
    {"HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": "hf_old"},
    {"HF_TOKEN_PATH": "/dev/null"},
    {"HF_TOKEN_PATH": "/no/such/file"},
    {"HF_TOKEN": "hf_x", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"},
    {"HF_TOKEN": "hf_x", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"},
    {"HF_ENDPOINT": "http://127.0.0.1:9"},
    {"HF_ENDPOINT": "http://127.0.0.1:9///"},
    {"HF_HUB_OFFLINE": "1"},
    {"HF_HUB_OFFLINE": "on"},
    {"HF_HUB_OFFLINE": "Yes"},
    {"HF_HUB_OFFLINE": "true"},
    {"HF_HUB_OFFLINE": "0"},
    {"HF_HUB_OFFLINE": "2"},
    {"HF_HUB_OFFLINE": ""},
    {"TRANSFORMERS_OFFLINE": "1"},
    {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "1"},
    {"HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": "1"},
    {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    {"HF_HUB_DISABLE_PROGRESS_BARS": "0"},
    {"HF_HUB_DISABLE_PROGRESS_BARS": ""},
    {"HF_HUB_ETAG_TIMEOUT": "3", "HF_HUB_DOWNLOAD_TIMEOUT": "4"},
    {"HF_HUB_ETAG_TIMEOUT": "0"},
]


def told():
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    return {
        "cache": constants.HF_HUB_CACHE,
        "endpoint": constants.ENDPOINT,
        "offline": constants.HF_HUB_OFFLINE,
        "progress": not constants.HF_HUB_DISABLE_PROGRESS_BARS,
        "token": "present" if "authorization" in build_hf_headers() else None,
        "etag_timeout": constants.HF_HUB_ETAG_TIMEOUT,
        "download_timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT,
    }


def main():
    if sys.argv[1:] == ["one"]:
        print(json.dumps(told()))
        return
    running = []
    for case in CASES:
        env = {"HOME": HOME, "PATH": os.environ["PATH"], **case}
        running.append(subprocess.Popen([sys.executable, __file__, "one"], env=env, stdout=subprocess.PIPE, text=True))
    lines = []
    for case, process in zip(CASES, running):
        out, _ = process.communicate()
        assert process.returncode == 0, case
        lines.append(json.dumps({"set": case, "python": json.loads(out)}))
    print("[\n" + ",\n".join(lines) + "\n]")


main()
