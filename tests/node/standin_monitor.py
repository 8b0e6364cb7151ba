#!/usr/bin/python3 -IS
"""Stands in for kata-monitor: takes its options, and answers with its names for metrics.

Like the real one it is told of sandboxes by their folders and by containerd, and ends where it
cannot watch. `standin.py` writes OPTION into it.
"""

import argparse
import http.server
import os
import socket

OPTION = "--runtime-endpoint"
SANDBOXES = ("/run/vc/sbs", "/run/kata")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        shims = sum(len(os.listdir(top)) for top in SANDBOXES if os.path.isdir(top))
        body = (
            "# HELP kata_monitor_running_shim_count Running shim count(running sandboxes).\n"
            "# TYPE kata_monitor_running_shim_count gauge\n"
            f"kata_monitor_running_shim_count {shims}\n"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen-address", default="127.0.0.1:8090")
    parser.add_argument("--log-level")
    parser.add_argument(OPTION, dest="endpoint", required=True)
    given = parser.parse_args()
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(given.endpoint)
    host, _, port = given.listen_address.rpartition(":")
    http.server.HTTPServer((host, int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
