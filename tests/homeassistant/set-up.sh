#!/bin/sh
# Installs a real Home Assistant for the tests beside this file: set-up.sh FOLDER. Without a Python 3.13 it says so,
# and the tests are skipped.
set -eu
venv=$1
wanted=$(dirname "$0")/requirements.txt

# A shim of pyenv is there whatever versions are; so each one is tried.
for python in python3.13 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13.*/bin/python3.13; do
  if "$python" -c 'import sys, venv; sys.exit(sys.version_info[:2] != (3, 13))' 2>/dev/null; then
    found=$python
    break
  fi
done
if [ -z "${found:-}" ]; then
  echo "No Python 3.13 with venv here, the last one that Home Assistant 2025.4 runs under: these tests are skipped."
  exit 0
fi
echo "Installing Home Assistant into $venv ..."
rm -rf "$venv"
"$found" -m venv "$venv"
"$venv/bin/python" -m pip install -q --disable-pip-version-check -r "$wanted"
touch "$venv/.installed"
