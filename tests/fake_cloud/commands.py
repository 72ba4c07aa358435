"""The gcloud commands that the fake knows, with their flags in the general release (checked against 528.0.0).

A flag is True if it takes a value. A flag that is misspelt, or in alpha only, is refused as gcloud does.
"""

EVERYWHERE = {"--project": True, "--format": True, "--quiet": False}
_LIST = {
    "--filter": True,
    "--limit": True,
    "--page-size": True,
    "--sort-by": True,
    "--uri": False,
    "--zone": True,
}
_SSH = {
    "--dry-run": False, "--force-key-file-overwrite": False, "--internal-ip": False, "--plain": False,
    "--ssh-key-expiration": True, "--ssh-key-expire-after": True, "--ssh-key-file": True,
    "--strict-host-key-checking": True, "--worker": True, "--zone": True,
}  # fmt: skip
_COPY = {
    "--cache-control": True, "--content-type": True, "--continue-on-error": False,
    "--if-generation-match": True, "--if-metageneration-match": True, "--manifest-path": True,
    "--no-clobber": False, "--recursive": False,
}  # fmt: skip

# What a command is called: how many words it takes (at least and at most), and its own flags.
COMMANDS = {
    "auth login": (0, 1, {}),
    "config set": (2, 2, {}),
    "services enable": (1, 99, {"--async": False}),
    "projects describe": (1, 1, {}),
    "compute tpus accelerator-types list": (0, 0, _LIST),
    "compute tpus queued-resources create": (1, 1, {
        "--accelerator-type": True, "--async": False, "--data-disk": True, "--description": True,
        "--guaranteed": False, "--internal-ips": False, "--labels": True, "--metadata": True,
        "--metadata-from-file": True, "--network": True, "--node-count": True, "--node-id": True,
        "--node-prefix": True, "--range": True, "--reserved": False, "--runtime-version": True,
        "--scopes": True, "--service-account": True, "--shielded-secure-boot": False, "--spot": False,
        "--subnetwork": True, "--tags": True, "--topology": True, "--type": True,
        "--valid-after-duration": True, "--valid-after-time": True, "--valid-until-duration": True,
        "--valid-until-time": True, "--zone": True,
    }),
    "compute tpus queued-resources delete": (1, 1, {"--async": False, "--force": False, "--zone": True}),
    "compute tpus queued-resources describe": (1, 1, {"--zone": True}),
    "compute tpus queued-resources list": (0, 0, _LIST),
    "compute tpus tpu-vm describe": (1, 1, {"--zone": True}),
    "compute tpus tpu-vm list": (0, 0, _LIST),
    "compute tpus tpu-vm scp": (2, 99, {
        **_SSH, "--compress": False, "--recurse": False, "--scp-flag": True
    }),
    "compute tpus tpu-vm ssh": (1, 1, {
        **_SSH, "--command": True, "--output-directory": True, "--ssh-flag": True
    }),
    "storage buckets create": (1, 99, {
        "--location": True, "--uniform-bucket-level-access": False, "--default-storage-class": True,
        "--public-access-prevention": False, "--soft-delete-duration": True,
    }),
    "storage buckets add-iam-policy-binding": (1, 1, {"--member": True, "--role": True}),
    "storage buckets describe": (1, 1, {"--raw": False}),
    "storage cat": (1, 99, {"--display-url": False, "--range": True}),
    "storage cp": (2, 99, _COPY),
    "storage ls": (0, 99, {
        "--buckets": False, "--full": False, "--json": False, "--long": False, "--recursive": False
    }),
    "storage objects describe": (1, 1, {
        "--fetch-encrypted-object-hashes": False, "--raw": False, "--soft-deleted": False
    }),
    "storage rm": (1, 99, {
        "--all-versions": False, "--continue-on-error": False, "--if-generation-match": True,
        "--recursive": False,
    }),
}  # fmt: skip


class Refused(Exception):
    """What gcloud writes on its standard error before it ends with code 2 or 1."""

    def __init__(self, text: str, code: int = 1):
        super().__init__(text)
        self.text = text
        self.code = code


def parsed(words):
    """Returns a command's name, its words and its flags. Raises Refused as gcloud's own parser does."""
    name = next((name for name in COMMANDS if words[: len(name.split())] == name.split()), None)
    if name is None:
        raise Refused(f"ERROR: (gcloud) Invalid choice: {' '.join(words[:4])!r}.", 2)
    least, most, known = COMMANDS[name]
    places, flags = [], {}
    rest = list(words[len(name.split()) :])
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            places.append(word)
            continue
        flag, equals, value = word.partition("=")
        takes = (EVERYWHERE | known).get(flag)
        if takes is None:
            raise Refused(f"ERROR: (gcloud.{name.replace(' ', '.')}) unrecognized arguments: {word}", 2)
        if takes and not equals:
            value = rest.pop(0)
        if equals and not takes:
            raise Refused(
                f"ERROR: (gcloud.{name.replace(' ', '.')}) argument {flag}: ignored explicit argument", 2
            )
        flags[flag] = value if takes else True
    if not least <= len(places) <= most:
        raise Refused(f"ERROR: (gcloud.{name.replace(' ', '.')}) wrong number of arguments: {places}", 2)
    return name, places, flags
