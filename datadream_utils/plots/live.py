"""Whether somebody sits before a notebook, or a program runs it."""

from IPython import get_ipython


def is_live():
    """False under papermill and nbconvert, which ask for cells that may not want input; True where a control moved."""
    kernel = getattr(get_ipython(), "kernel", None)
    request = kernel.get_parent() if kernel else {}
    return request.get("content", {}).get("allow_stdin", False) or request.get("msg_type") == "comm_msg"
