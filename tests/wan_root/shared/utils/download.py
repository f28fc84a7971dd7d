"""Where all weights come from, as in the engine: the functions are taken by name, at the moment of the call."""

import os


def located(name, places):
    return next((path for place in places if os.path.exists(path := os.path.join(place, name))), None)


def fetch_missing(repo, folder, files, places):
    """Those of a folder of a repository; without files the whole folder."""
    from huggingface_hub import hf_hub_download, snapshot_download

    if not files and located(folder, places) is None:
        snapshot_download(repo_id=repo, allow_patterns=folder + "/*", local_dir=places[0])
    for file in files:
        if located(os.path.join(folder, file), places) is None:
            hf_hub_download(repo_id=repo, filename=file, local_dir=places[0], subfolder=folder or None)


def download_file(url, filename):
    from urllib.request import urlretrieve

    urlretrieve(url, filename)
