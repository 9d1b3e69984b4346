#!/bin/sh
# The broker tests want a real Mosquitto. It is installed where this user may; else they run on amqtt and say so.
PATH="$PATH:/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"
command -v mosquitto >/dev/null 2>&1 && exit 0

as_root=""
if [ "$(id -u)" != 0 ]; then
  if command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then as_root="sudo -n"; else as_root="no"; fi
fi
if [ "$as_root" != no ]; then
  echo "Installing Mosquitto for the broker tests ..."
  if command -v apt-get >/dev/null 2>&1; then
    { $as_root apt-get update -q && $as_root env DEBIAN_FRONTEND=noninteractive \
      apt-get install -qy --no-install-recommends mosquitto mosquitto-clients; } >/dev/null 2>&1
  elif command -v dnf >/dev/null 2>&1; then $as_root dnf install -qy mosquitto >/dev/null 2>&1
  elif command -v apk >/dev/null 2>&1; then $as_root apk add -q mosquitto mosquitto-clients >/dev/null 2>&1
  elif command -v pacman >/dev/null 2>&1; then $as_root pacman -S --noconfirm mosquitto >/dev/null 2>&1
  fi
fi
command -v mosquitto >/dev/null 2>&1 ||
  echo "No Mosquitto here, and it could not be installed: the broker tests run on amqtt, those of Mosquitto alone are skipped."
exit 0
