# shellcheck shell=bash disable=SC2034
# Shared by ./run, ./test and tools/device_check. All talk goes to stderr: stdout belongs to the program.

say() { printf '== %s\n' "$*" >&2; }

# ccache: what one build folder compiled serves the others, wherever the project lies.
CCACHE_BASEDIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export CCACHE_BASEDIR CCACHE_NOHASHDIR=1

die() {
  printf 'error: %s\n' "$1" >&2
  if [ -n "${2:-}" ]; then printf '\nhint: %s\n' "$2" >&2; fi
  exit "${3:-3}"
}

# What building and running needs, and what ./test --all needs on top (Debian 12, Ubuntu 24.04).
BUILD_PACKAGES=(
  g++ cmake ninja-build pkg-config ccache git python3 ca-certificates
  libfmt-dev nlohmann-json3-dev libtomlplusplus-dev libcli11-dev
  libpcre2-dev libutf8proc-dev libcurl4-openssl-dev libsqlite3-dev libgtest-dev
)
CHECK_PACKAGES=(
  clang clang-tidy clang-format-14 libbenchmark-dev libopenblas-openmp-dev chromium librsvg2-bin
)

is_installed() {
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# install_packages NAME...: installs those that are missing; touches nothing when none is.
install_packages() {
  if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    say "no apt here: these packages, by their Debian names, must be installed: $*"
    return
  fi
  local missing=() package
  for package in "$@"; do
    is_installed "$package" || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null ||
      die "packages are missing and neither root nor sudo is at hand: ${missing[*]}" \
        "as root: apt-get update && apt-get install ${missing[*]}"
    as_root=(sudo)
  fi
  say "installing: ${missing[*]}"
  local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0)
  "${apt[@]}" update >&2 || say "apt-get update failed; trying with the package lists at hand"
  "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >&2 ||
    die "apt-get could not install: ${missing[*]}" \
      "read its message above; on Ubuntu the 'universe' component must be enabled"
}

# libFuzzer and the sanitizers' run time come in a package named after clang's version.
install_clang_runtime() {
  local version
  version=$(clang -dumpversion 2>/dev/null | cut -d. -f1)
  [ -n "$version" ] || die "clang does not run" "apt-get install clang"
  install_packages "libclang-rt-$version-dev"
}

# cuda_release: of nvcc's toolkit, such as 13.0; 0 where there is no nvcc.
cuda_release() {
  local nvcc release=""
  if nvcc=$(command -v "${CUDACXX:-nvcc}" || command -v /usr/local/cuda/bin/nvcc); then
    release=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
  fi
  printf '%s' "${release:-0}"
}

# configure PRESET: the log is shown only when it fails.
configure() {
  local log="build/$1/configure.log"
  mkdir -p "build/$1"
  say "cmake --preset $1"
  cmake --preset "$1" >"$log" 2>&1 || {
    cat "$log" >&2
    die "configuring preset '$1' failed" "rm -rf build/$1, then run this command again"
  }
}

# build PRESET [arguments of cmake --build]
build() {
  configure "$1"
  say "cmake --build --preset $*"
  cmake --build --preset "$@" >&2 || die "building preset '$1' failed" "" 1
}
