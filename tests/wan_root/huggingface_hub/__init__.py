"""What the hub's client does without a network."""


class LocalEntryNotFoundError(FileNotFoundError):
    pass


def hf_hub_download(repo_id, filename, *, subfolder=None, local_dir=None, **options):
    raise LocalEntryNotFoundError(
        "An error happened while trying to locate the file on the Hub and we cannot find the requested files in the "
        "local cache. Please check your connection and try again or make sure your Internet connection is on."
    )


def snapshot_download(repo_id, *, allow_patterns=None, local_dir=None, **options):
    raise LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder for the specified revision")
