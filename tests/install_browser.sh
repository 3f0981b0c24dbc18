#!/bin/sh
# The extraction tests drive a real Chrome. Where there is none, install Debian's; elsewhere say what is needed.
set -e
for browser in chromium google-chrome chromium-browser chrome; do
    command -v "$browser" >/dev/null && exit 0
done
[ -d "/Applications/Google Chrome.app" ] && exit 0
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null
else
    echo "The extraction tests need Chrome or Chromium. Install one, e.g.: sudo apt-get install chromium chromium-driver" >&2
    exit 1
fi
