#!/bin/sh
# Run by mmdebstrap when the packages are in: unpacks a kernel without installing it, which would
# make an initrd of its own. Debian's /lib is a link, and tar must go through it.
set -eu
root=$1
cd "$root/tmp"
apt-get -q download "$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: //p')"
dpkg-deb --fsys-tarfile linux-image-*.deb | tar -x --keep-directory-symlink -C "$root" \
    --exclude='./usr/share' --exclude='*/drivers/gpu' --exclude='*/drivers/media' \
    --exclude='*/drivers/net/wireless' --exclude='*/drivers/infiniband' \
    --exclude='*/drivers/net/ethernet' --exclude='*/drivers/staging' --exclude='*/drivers/iio'
rm linux-image-*.deb
chroot "$root" depmod "$(ls "$root/usr/lib/modules")"
