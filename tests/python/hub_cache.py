"""huggingface_hub on the cache that HF_HUB_CACHE names: what it fetches, what it finds, and its locks."""

import os
import sys
import time

os.environ["HF_HUB_DISABLE_XET"] = "1"
what = sys.argv[1]
if what == "offline":
    os.environ["HF_HUB_OFFLINE"] = "1"

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.utils import WeakFileLock

REPO, FILE = "org/name", "model.safetensors"

if what == "snapshot":
    print(os.path.join(snapshot_download(REPO), FILE))
elif what in ("file", "offline"):
    print(hf_hub_download(REPO, FILE))
elif what == "hold":
    folder = os.path.join(constants.HF_HUB_CACHE, ".locks", "models--org--name")
    os.makedirs(folder, exist_ok=True)
    with WeakFileLock(os.path.join(folder, sys.argv[2] + ".lock")):
        print("held", flush=True)
        time.sleep(0.8)
