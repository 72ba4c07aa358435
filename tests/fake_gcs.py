"""Serves Cloud Storage's JSON API from a folder: what Orbax, TensorStore and google-cloud-storage ask of it.

    python tests/fake_gcs.py FOLDER [--port=N]

An object is a file, FOLDER/BUCKET/NAME; its generation is the time at which it was written, so files that
something else puts there are objects, too. Only conditions on generations are atomic, as in the real one.
"""

import argparse
import base64
import contextlib
import datetime
import email.parser
import json
import os
import re
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SLASH = "%2F-"  # stands for the slash at the end of an object's name
PARTIAL = ".put-"


class Fault:
    """The next ``times`` requests that match are answered with ``status``.

    With ``after`` the request is carried out first, and its own answer is lost.
    """

    def __init__(self, pattern, status, times=1, after=False):
        self.pattern = re.compile(pattern)
        self.status = status
        self.times = times
        self.after = after


class Store:
    """The objects below a folder."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.lock = threading.Lock()
        self.long_rewrites = False  # whether an object is moved by two requests
        self._newest = 0
        self._checksums = {}

    def path(self, bucket, name):
        assert ".." not in name.split("/"), name
        return self.folder / bucket / (name.removesuffix("/") + SLASH if name.endswith("/") else name)

    def names(self, bucket, prefix):
        root = self.folder / bucket
        found = []
        for path in root.rglob("*"):
            if path.is_file() and not path.name.startswith(PARTIAL):
                name = str(path.relative_to(root)).replace(SLASH, "/")
                if name.startswith(prefix):
                    found.append(name)
        return sorted(found)

    def about(self, bucket, name):
        path = self.path(bucket, name)
        stat = path.stat()
        if not path.is_file():
            raise FileNotFoundError(path)
        key = (path, stat.st_mtime_ns)
        if key not in self._checksums:
            import google_crc32c  # here, so that tests without buckets need no client of them

            checksum = google_crc32c.value(path.read_bytes())
            self._checksums[key] = base64.b64encode(checksum.to_bytes(4, "big")).decode()
        at = datetime.datetime.fromtimestamp(stat.st_mtime, datetime.UTC).isoformat(timespec="milliseconds")
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{stat.st_mtime_ns}",
            "name": name,
            "bucket": bucket,
            "size": str(stat.st_size),
            "generation": str(stat.st_mtime_ns),
            "metageneration": "1",
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
            "crc32c": self._checksums[key],
            "timeCreated": at.replace("+00:00", "Z"),
            "updated": at.replace("+00:00", "Z"),
        }

    def generation(self, bucket, name):
        try:
            return int(self.about(bucket, name)["generation"])
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def put(self, bucket, name, data):
        path = self.path(bucket, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{PARTIAL}{threading.get_ident()}-{path.name}"[:200])
        partial.write_bytes(data)
        self._newest = max(time.time_ns(), self._newest + 1000)  # every generation is another one
        os.utime(partial, ns=(self._newest, self._newest))
        os.replace(partial, path)

    def delete(self, bucket, name):
        path = self.path(bucket, name)
        path.unlink()
        with contextlib.suppress(OSError):  # a folder that is not empty stays
            while (path := path.parent) != self.folder / bucket:
                path.rmdir()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._answer()

    do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    def _answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        self.server.requests.append(f"{self.command} {self.path}")
        time.sleep(self.server.latency_s)
        fault = self.server.fault_of(f"{self.command} {self.path}")
        if fault is not None and not fault.after:
            return self._send(fault.status, error_of(fault.status, "scripted"))
        status, found, headers = self._routed(self.command, self.path, self.headers, body)
        if self.command != "GET":
            self.server.changed()
        if fault is not None:
            return self._send(fault.status, error_of(fault.status, "scripted"))
        return self._send(status, found, headers)

    def _chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _routed(self, command, path, headers, body):
        url = urllib.parse.urlsplit(path)
        asked = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        found = re.fullmatch(r"(/upload|/download|/batch)?/(?:storage/v1|upload/storage/v1)(/.*)?", url.path)
        if found is None:
            return 404, error_of(404, f"no such path: {url.path}"), {}
        kind, rest = found[1], found[2] or ""
        if kind == "/batch":
            return self._batch(headers, body)
        parts = rest.strip("/").split("/")
        bucket = urllib.parse.unquote(parts[1]) if len(parts) > 1 else ""
        if not (self.server.store.folder / bucket).is_dir():
            return 404, error_of(404, f"The specified bucket does not exist: {bucket}"), {}
        if len(parts) == 2:
            return 200, {"kind": "storage#bucket", "id": bucket, "name": bucket, "location": "US-EAST5"}, {}
        if parts[2] == "storageLayout":
            return 200, {"bucket": bucket, "location": "US-EAST5", "locationType": "region"}, {}
        if parts[2] != "o":
            return 404, error_of(404, f"no such path: {url.path}"), {}
        name = urllib.parse.unquote("/".join(parts[3:]))
        with self.server.store.lock:
            try:
                return self._object(command, kind, bucket, name, asked, headers, body)
            except (FileNotFoundError, NotADirectoryError):
                return 404, error_of(404, f"No such object: {bucket}/{name}"), {}

    def _object(self, command, kind, bucket, name, asked, headers, body):
        store = self.server.store
        if kind == "/upload":
            return self._upload(command, bucket, asked, headers, body)
        if not name:
            return 200, listing(store, bucket, asked), {}
        found = re.fullmatch(r"(.*)/(rewriteTo|copyTo|moveTo)/b/([^/]+)/o/(.*)", name)
        if found:
            source, verb, to_bucket, to_name = found.groups()
            if store.long_rewrites and "rewriteToken" not in asked:
                return 200, {"kind": "storage#rewriteResponse", "done": False, "rewriteToken": "more",
                             "objectSize": "2", "totalBytesRewritten": "1"}, {}  # fmt: skip
            store.put(to_bucket, to_name, store.path(bucket, source).read_bytes())
            if verb == "moveTo":
                store.delete(bucket, source)
            about = store.about(to_bucket, to_name)
            done = {"kind": "storage#rewriteResponse", "done": True, "resource": about}
            return 200, done | {"objectSize": about["size"], "totalBytesRewritten": about["size"]}, {}
        if not fits(asked, store.generation(bucket, name)):
            changed = "ifGenerationNotMatch" in asked and command == "GET"
            return (304, b"", {}) if changed else (412, error_of(412, "conditionNotMet"), {})
        if command == "DELETE":
            store.delete(bucket, name)
            return 204, b"", {}
        about = store.about(bucket, name)
        if asked.get("generation") not in (None, about["generation"]):
            raise FileNotFoundError
        if asked.get("alt") != "media" and kind != "/download":
            return 200, about, {}
        return ranged(store.path(bucket, name).read_bytes(), headers.get("Range"), about)

    def _upload(self, command, bucket, asked, headers, body):
        store = self.server.store
        session = asked.get("upload_id")
        if session is not None:
            return self._resumed(session, headers, body)
        name = asked.get("name")
        data = body
        if asked["uploadType"] == "multipart":
            about, data = two_parts(headers["Content-Type"], body)
            name = json.loads(about).get("name", name)
        elif asked["uploadType"] == "resumable":
            name = json.loads(body or b"{}").get("name", name)
        if not fits(asked, store.generation(bucket, name)):
            return 412, error_of(412, "conditionNotMet"), {}
        if asked["uploadType"] == "resumable":
            session = f"s{len(self.server.sessions)}"
            self.server.sessions[session] = [bucket, name, b"", asked]
            host = self.headers["Host"]
            place = f"http://{host}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={session}"
            return 200, {}, {"Location": place}
        store.put(bucket, name, data)
        return 200, store.about(bucket, name), {}

    def _resumed(self, session, headers, body):
        store = self.server.store
        bucket, name, before, asked = self.server.sessions[session]
        told = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", headers.get("Content-Range", ""))
        data = before + body
        if told and (told[3] == "*" or len(data) < int(told[3])):
            self.server.sessions[session][2] = data
            return 308, b"", {"Range": f"bytes=0-{len(data) - 1}"} if data else {}
        if not fits(asked, store.generation(bucket, name)):
            return 412, error_of(412, "conditionNotMet"), {}
        store.put(bucket, name, data)
        return 200, store.about(bucket, name), {}

    def _batch(self, headers, body):
        """Several deletions in one request, as multipart/mixed."""
        whole = b"Content-Type: " + headers["Content-Type"].encode() + b"\r\n\r\n" + body
        answers = []
        for number, part in enumerate(email.parser.BytesParser().parsebytes(whole).get_payload(), start=1):
            command, path, _ = part.get_payload().strip().split("\r\n")[0].split("\n")[0].split(" ")
            path = urllib.parse.urlsplit(path)
            status, found, _ = self._routed(command, f"{path.path}?{path.query}", {}, b"")
            text = found if isinstance(found, str) else json.dumps(found) if isinstance(found, dict) else ""
            answers.append(
                f"--batch\r\nContent-Type: application/http\r\nContent-ID: <response-{number}>\r\n\r\n"
                f"HTTP/1.1 {status} X\r\nContent-Length: {len(text)}\r\n\r\n{text}\r\n"
            )
        return (
            200,
            ("".join(answers) + "--batch--").encode(),
            {"Content-Type": "multipart/mixed; boundary=batch"},
        )

    def _send(self, status, found, headers=None):
        data = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(status)
        for key, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(key, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(data)


def fits(asked, generation):
    """Whether an object of this generation (0: there is none) meets the request's conditions."""
    match = asked.get("ifGenerationMatch")
    other = asked.get("ifGenerationNotMatch")
    return (match is None or int(match) == generation) and (other is None or int(other) != generation)


def two_parts(kind, body):
    """The contents of the two parts of a multipart body, byte for byte."""
    boundary = b"--" + re.search(r'boundary="?([^"\r\n; ]+)', kind)[1].encode()
    _, first, rest = body.split(boundary, 2)
    second = rest[: rest.rindex(boundary)]
    contents = [re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in (first, second)]
    return [content.removesuffix(b"\n").removesuffix(b"\r") for content in contents]


def listing(store, bucket, asked):
    prefix = asked.get("prefix", "")
    delimiter = asked.get("delimiter")
    names = store.names(bucket, prefix)
    start, end = asked.get("startOffset"), asked.get("endOffset")
    names = [n for n in names if (start is None or n >= start) and (end is None or n < end)]
    items, folders = [], set()
    for name in names:
        rest = name[len(prefix) :]
        if delimiter and delimiter in rest:
            folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            if not (asked.get("includeTrailingDelimiter") == "true" and rest.endswith(delimiter)):
                continue
        items.append(name)
    most = int(asked.get("maxResults", 1000))
    first = int(asked.get("pageToken", 0))
    page = items[first : first + most]
    found = {"kind": "storage#objects", "items": [store.about(bucket, name) for name in page]}
    found |= {"prefixes": sorted(folders)} if folders else {}
    return found | ({"nextPageToken": str(first + most)} if first + most < len(items) else {})


def ranged(data, wanted, about):
    headers = {
        "Content-Type": "application/octet-stream",
        "x-goog-generation": about["generation"],
        "x-goog-metageneration": "1",
        "x-goog-hash": f"crc32c={about['crc32c']}",
        "x-goog-stored-content-length": about["size"],
        "ETag": f'"{about["generation"]}"',
    }
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
    if found is None:
        return 200, data, headers
    first = int(found[1]) if found[1] else max(0, len(data) - int(found[2]))
    last = min(int(found[2]), len(data) - 1) if found[1] and found[2] else len(data) - 1
    if first >= len(data):
        return 416, error_of(416, "range"), {"Content-Range": f"bytes */{len(data)}"}
    return 206, data[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"}


def error_of(status, message):
    return {
        "error": {"code": status, "message": message, "errors": [{"reason": message, "message": message}]}
    }


def environment(url):
    """What makes all clients of a process talk to a server, without credentials."""
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "NO_GCE_CHECK": "true",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks by gRPC, with credentials
    }


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder, port=0, latency_s=0.0):
        super().__init__(("127.0.0.1", port), Handler)
        self.store = Store(folder)
        self.requests = []
        self.faults = []
        self.sessions = {}
        self.latency_s = latency_s

    def fault_of(self, line):
        for fault in self.faults:
            if fault.times and fault.pattern.search(line):
                fault.times -= 1
                return fault
        return None

    def changed(self):
        """Called after each request that may have changed something."""

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that was killed
            super().handle_error(request, client_address)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def serving(folder, latency_s=0.0):
    server = Server(folder, latency_s=latency_s)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency_s", type=float, default=0.0)
    args = parser.parse_args()
    server = Server(args.folder, args.port, args.latency_s)
    print(server.url, flush=True)
    server.serve_forever()
