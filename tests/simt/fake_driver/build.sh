#!/bin/sh
# Builds the fake driver, NVRTC and cuBLASLt into a directory that LD_LIBRARY_PATH may name.
#   build.sh <directory>
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
options="-O1 -std=c++17 -fPIC -shared -fvisibility=hidden -Wall -Wextra -pthread"
g++ $options -Wl,-soname,libcuda.so.1 "$here"/*.cpp -o "$1/libcuda.so.1" -ldl
# The two libraries hold nothing of their own: what is looked up in them is found in the driver, which they need.
for library in libnvrtc.so.13 libcublasLt.so.13; do
    echo | gcc -shared -fPIC -x c - -o "$1/$library" -Wl,-soname,$library -Wl,--no-as-needed -L"$1" -l:libcuda.so.1 \
        -Wl,-rpath,'$ORIGIN'
done
