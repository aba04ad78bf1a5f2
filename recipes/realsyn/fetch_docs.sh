#!/bin/sh
# Downloads and unpacks the documentation that `realsyn/pipeline_docs` reads: five packages of Debian
# or Ubuntu, 195 MB, with nothing installed and no rights needed.
#   sh fetch_docs.sh [FOLDER]        default: data/debian_docs
# What was measured was measured on Debian 12: debian-handbook 11.20220922, gimp-help-en 2.10.34-2,
# kicad-doc-en 6.0.11+dfsg-1, python-skimage-doc 0.19.3-8, python-sklearn-doc 1.2.1+dfsg-1. Others
# hold other pages: to get these, name them as NAME=VERSION below.
set -eu
folder=${1:-data/debian_docs}
packages="debian-handbook gimp-help-en kicad-doc-en python-skimage-doc python-sklearn-doc"
command -v apt-get > /dev/null && command -v dpkg-deb > /dev/null || {
    echo "error: needs apt-get and dpkg-deb, of Debian or Ubuntu" >&2
    exit 2
}
mkdir -p "$folder/.packages"
for package in $packages; do
    name=${package%%=*}
    if [ -e "$folder/$name/.unpacked" ]; then
        echo "$folder/$name is there"
        continue
    fi
    (cd "$folder/.packages" && apt-get download "$package")
    rm -rf "$folder/$name"
    dpkg-deb -x "$folder/.packages/$name"_*.deb "$folder/$name"
    touch "$folder/$name/.unpacked"
    echo "$folder/$name: $(dpkg-deb -f "$folder/.packages/$name"_*.deb Version)"
done
