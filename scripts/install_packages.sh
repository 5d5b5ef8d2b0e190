#!/bin/sh
# Installs those of the named Debian packages that are missing; silent and instant when none is.
set -eu
missing=
for package in "$@"; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
    echo "These Debian packages are missing:$missing. Run make as root, or: sudo apt-get install$missing" >&2
    exit 1
fi
echo "Installing Debian packages:$missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# shellcheck disable=SC2086 # one word per package is meant
if ! { apt-get -q update && apt-get -q install --no-install-recommends --yes $missing; } >"$log" 2>&1; then
    cat "$log" >&2
    exit 1
fi
