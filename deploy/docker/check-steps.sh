#!/bin/sh
# Runs the Dockerfile's steps in their order where there is no Docker: a scratch folder stands for the image's root,
# a fresh virtual environment for its Python. In the end the installed command must run and take the sample.
set -eu

project=$(cd "$(dirname "$0")/../.." && pwd)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
"${PYTHON:-python3}" -m venv "$root/usr"
PATH=$root/usr/bin:$PATH
if [ "$(id -u)" != 0 ]; then ln -s "$(command -v true)" "$root/usr/bin/chown"; fi

within() { # absolute paths, moved into the scratch folder
    printf '%s\n' "$1" | sed -E "s#(^|[ =])/#\1$root/#g"
}

copy() { # as COPY does: files go into the last folder, a folder's content too
    for to; do :; done
    mkdir -p "$to"
    while [ $# -gt 1 ]; do
        if [ -d "$project/$1" ]; then cp -R "$project/$1/." "$to"; else cp "$project/$1" "$to"; fi
        shift
    done
}

sed -e ':again' -e '/\\$/{N;s/\\\n */ /;b again' -e '}' "$project/deploy/docker/Dockerfile" |
    while IFS= read -r step; do
        words=${step#* }
        case $step in
        WORKDIR\ *) mkdir -p "$(within "$words")" && cd "$(within "$words")" ;;
        COPY\ *) copy $words ;;
        ENV\ *) export $(within "$words") ;;
        RUN\ *) sh -euc "$(within "$words")" </dev/null ;;
        '' | \#* | FROM\ * | USER\ * | VOLUME\ * | EXPOSE\ * | STOPSIGNAL\ * | HEALTHCHECK\ * | ENTRYPOINT\ * | CMD\ *) continue ;;
        *) echo "check-steps.sh does not know this step: $step" >&2 && exit 1 ;;
        esac
        echo "done: $step"
    done

cd "$root/data"
mkdir -p "$root/run/secrets" "$root/config"
for name in bace_client_secret bace_password mqtt_password; do echo secret >"$root/run/secrets/$name"; done
sed "s#/run/secrets#$root/run/secrets#; s#sqlite:////data#sqlite:///$root/data#" \
    "$project/deploy/docker/bridge.yaml" >"$root/config/bridge.yaml"
bace-bridge --version
bace-bridge check -c "$root/config/bridge.yaml"
