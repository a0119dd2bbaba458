"""`autodrag app`: the editor in the browser, and the HTTP API."""

from __future__ import annotations

import argparse
import re
import secrets
from pathlib import Path

from autodrag.errors import AutodragError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `autodrag app`."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; addresses other than 127.0.0.1 need a token"
    )
    parser.add_argument("--port", type=int, default=8765, help="0 chooses a free port (default: 8765)")
    parser.add_argument(
        "--token", help="secret that clients must send; generated and printed if it is needed and missing"
    )
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="host name of the server; may be repeated"
    )
    parser.add_argument(
        "--checkpoints",
        default="checkpoints",
        metavar="FOLDER",
        help="folder that contains the checkpoints (default: checkpoints)",
    )
    parser.add_argument("--data", metavar="FOLDER", help="folder of saved sessions (default: ~/.local/share/autodrag)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if available)")
    parser.add_argument("--workers", type=int, help="parallel computations (default: number of cores, at most 4)")
    parser.add_argument("--sessions", type=int, default=64, help="maximum number of open sessions (default: 64)")
    parser.add_argument(
        "--idle",
        type=float,
        default=1800.0,
        metavar="SECONDS",
        help="close sessions that are unused for this time (default: 1800)",
    )
    parser.add_argument(
        "--edit-seconds",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="maximum computing time of an edit (default: 30)",
    )
    parser.add_argument("--open", action="store_true", help="open a browser window")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    import torch

    from autodrag.app.config import AppConfig, is_loopback

    try:
        from autodrag.app.server import make_server
    except ImportError as error:
        raise AutodragError(f"the app needs {error.name}; install it with pip install 'autodrag[app]'") from error

    token = args.token
    if token is None and args.host != "localhost" and not is_loopback(args.host):
        token = secrets.token_urlsafe(18)
    if token is not None and not re.fullmatch(r"[A-Za-z0-9_-]{8,200}", token):
        raise AutodragError("the token must be 8 to 200 letters, digits, - and _; leave it out to generate one")
    if not 0 <= args.port < 65536:
        raise AutodragError(f"port {args.port} is not usable; expected 0 to 65535")
    if args.idle <= 0 or args.edit_seconds <= 0:
        raise AutodragError("--idle and --edit-seconds must be positive numbers of seconds")
    given = {"data": args.data and Path(args.data), "workers": args.workers}
    try:
        config = AppConfig(
            host=args.host,
            port=args.port,
            token=token,
            hosts=tuple(args.allow_host),
            checkpoints=Path(args.checkpoints),
            device=args.device,
            sessions=args.sessions,
            sessions_per_address=args.sessions if token is None else max(4, args.sessions // 2),
            idle_s=args.idle,
            edit_s=args.edit_seconds,
            **{name: value for name, value in given.items() if value is not None},
        )
    except ValueError as error:
        raise AutodragError(f"the server cannot start: {error}") from error
    torch.set_num_threads(max(1, torch.get_num_threads() // config.workers))  # workers share the cores

    def announce(address: str) -> None:
        print(f"autodrag is at {address}  (stop it with Ctrl+C)", flush=True)
        if args.open:
            import webbrowser

            webbrowser.open(address)

    make_server(config, announce).run()
    return 0
