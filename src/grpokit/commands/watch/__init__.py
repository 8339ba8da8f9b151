"""`grpokit watch RUN…`: a page on this machine that shows runs while they train. It reads what they write, and nothing else.

Importing this imports neither torch nor matplotlib.
"""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

from ...config.commands import WatchConfig


def watch(config: WatchConfig) -> int:
    """`grpokit watch RUN…`: serves the page until Ctrl-C.

    Raises:
        ValueError: no run is named, a port or a host that can't be used, or what the page needs isn't installed.
    """
    if not config.runs:
        raise ValueError(
            "watch: name a run, such as `grpokit watch runs/demo`, or a directory that holds runs"
        )
    if not 0 <= config.port < 65536:
        raise ValueError(f"--port {config.port}: expected a number from 0 to 65535")
    try:
        import uvicorn

        from .access import LOOPBACK
        from .server import listen, make_app
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise ValueError(f'watch: needs {error.name}; pip install "grpokit[watch]"') from error
    for run in config.runs:
        if Path(run).is_file():
            raise ValueError(
                f"watch: {run}: is a file; name a run's --output_dir, or a directory that holds runs"
            )
        if not Path(run).is_dir():
            print(f"note: {run}: no such directory yet; the page waits for it")
    token = "" if config.host in LOOPBACK else secrets.token_urlsafe(24)
    app = make_app([Path(run) for run in config.runs], token)
    with listen(config.host, config.port) as opened:
        port = opened.getsockname()[1]
        if config.port not in (0, port):
            print(f"note: --port {config.port}: is taken; {port} is the next one that is free")
        address = _address(config.host, port, token)
        print(f"{address}  ({', '.join(config.runs)}; Ctrl-C ends it)", flush=True)
        if config.open:
            import webbrowser

            webbrowser.open(address)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="error",
                access_log=False,
                lifespan="off",
                ws="none",
                timeout_graceful_shutdown=1,
            )
        )
        server.run(sockets=[opened])
    return 0


def _address(host: str, port: int, token: str) -> str:
    """Returns the page's URL. For 0.0.0.0 and ::, which a browser can't open, it has the machine's host name."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")
