"""papermill for many notebooks at once: ``python workflow/scripts/execute.py`` takes what the command papermill takes.

papermill's kernels choose network ports, and of many that start at one moment two may choose the same ("Address already
in use"). These talk through files in a temporary folder of their own, which no other user can read either. A kernel may
take ten minutes to start: libraries on a slow network disk are read in one minute by few.
"""

import os
import sys
import tempfile

import papermill.cli
from jupyter_client.manager import AsyncKernelManager
from papermill.engines import NBClientEngine, papermill_engines
from traitlets import default

START_TIMEOUT = 600  # seconds; papermill's own is 60
LONGEST = 85  # characters of the folder: systems allow some 100 for the path of a socket


class LocalKernelManager(AsyncKernelManager):
    """Starts a kernel whose five channels are Unix sockets in ``folder``."""

    folder = ""

    @default("transport")
    def _transport_is_files(self):
        return "ipc"

    @default("ip")
    def _ip_is_the_files_name(self):
        return os.path.join(self.folder, "channel")


class LocalEngine(NBClientEngine):
    """papermill's own way to execute a notebook, with a ``LocalKernelManager``."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **options):
        options["kernel_manager_class"] = LocalKernelManager
        return super().execute_managed_notebook(nb_man, kernel_name, **options)


if __name__ == "__main__":
    arguments = ["--start-timeout", str(START_TIMEOUT), *sys.argv[1:]]
    with tempfile.TemporaryDirectory(prefix="kernel-") as LocalKernelManager.folder:
        if os.name == "posix" and len(LocalKernelManager.folder) < LONGEST:
            papermill_engines.register(None, LocalEngine)
        papermill.cli.papermill(arguments)
