#!/bin/sh
# Installs the Debian packages of the named sections of tools/packages.txt that are missing.
# usage: tools/deps.sh [--print] SECTION...      e.g. tools/deps.sh build test
# As root or through sudo; otherwise it prints the line to run and stops with code 1. Where nothing is
# missing it only asks dpkg (about 20 ms) and touches neither the network nor the package lists.
set -eu
list=$(dirname "$0")/packages.txt
print_only=no
if [ "${1:-}" = --print ]; then
  print_only=yes
  shift
fi
[ $# -gt 0 ] || { echo "usage: tools/deps.sh [--print] SECTION...   (build, test, differential, openai, format, lint, fuzz)" >&2; exit 2; }

wanted=
for section in "$@"; do
  packages=$(awk -v section="[$section]" '
    { sub(/#.*/, ""); gsub(/^[ \t]+|[ \t]+$/, "") }
    /^\[/ { inside = ($0 == section); found = found || inside; next }
    inside && NF { print }
    END { exit !found }' "$list") || { echo "tools/deps.sh: no section [$section] in $list" >&2; exit 2; }
  wanted="$wanted
$packages"
done

names=$(printf '%s\n' "$wanted" | while read -r first second; do
  case $first in
    '') ;;
    *\?) command -v "${first%\?}" >/dev/null 2>&1 || echo "$second" ;;
    *) echo "$first" ;;
  esac
done | sort -u)
[ -n "$names" ] || exit 0

if ! command -v dpkg-query >/dev/null 2>&1; then
  echo "tools/deps.sh: this is no Debian system; install the like of: $(echo $names)" >&2
  exit 1
fi
missing=$(
  { dpkg-query -W -f='${db:Status-Status} ${Package}\n' $names 2>/dev/null || true; } |
    awk -v names="$(echo $names)" '
      $1 == "installed" { have[$2] = 1 }
      END { n = split(names, want, " "); for (i = 1; i <= n; i++) if (!(want[i] in have)) print want[i] }'
)
[ -n "$missing" ] || exit 0
missing=$(echo $missing)

if [ "$print_only" = yes ]; then
  echo "$missing"
  exit 0
fi
sudo=
if [ "$(id -u)" -ne 0 ]; then
  # Without a terminal sudo could only wait for a password that nobody types.
  if command -v sudo >/dev/null 2>&1 && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
    sudo=sudo
  else
    echo "Missing Debian packages. Run this as root, then try again:" >&2
    echo "  apt-get update && apt-get install -y --no-install-recommends $missing" >&2
    exit 1
  fi
fi
echo "Installing: $missing"
export DEBIAN_FRONTEND=noninteractive
as_root() {
  if [ -n "$sudo" ]; then sudo env DEBIAN_FRONTEND=noninteractive "$@"; else "$@"; fi
}
# Another apt-get may hold the lock for a moment (unattended upgrades): wait for it, do not fail.
as_root apt-get -qq -o DPkg::Lock::Timeout=300 update
as_root apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends $missing
