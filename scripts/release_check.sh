#!/usr/bin/env bash
# Proves that a release can be made of the last commit, and leaves its sdist and wheel in dist/.
#
# Builds both twice and compares them byte for byte, checks their metadata and what they hold, and
# installs the wheel on each supported Python in clean environments, with the oldest and the newest
# dependencies; there the commands run, far from the checkout.
#
# Needs the package index, git, and a Python with the dev extra: PYTHON, or else that of .venv, or
# python3. Pythons are looked for under pyenv and on the PATH; one that is not there is said, and
# so is one for which an oldest release has no wheel. Exits with 1 if a check failed.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/pythons.sh

python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || command -v python3)}
python=$(command -v "$python")
[[ $python == /* ]] || python=$PWD/$python
if ! "$python" -c 'import build, twine' 2>/dev/null; then
  echo "error: $python lacks build and twine; install '.[dev]' there, or name another in PYTHON" >&2
  exit 2
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0 report=()

# What a developer's shell may have set would not be there on another machine.
unset PYTHONPATH VIRTUAL_ENV
umask 022
export PIP_DISABLE_PIP_VERSION_CHECK=1
commit=$(git rev-parse HEAD)
# Both formats hold times; these are the commit's.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct "$commit")
export SOURCE_DATE_EPOCH

# step NAME COMMAND...: runs a command and notes how it went; prints what it said if it failed. The
# command is a process of its own that is waited for: in a condition, bash would not stop at errors.
step() {
  local name=$1 status=0 start=$SECONDS line
  shift
  (set -eEuo pipefail && trap 'echo "failed: $BASH_COMMAND" >&2' ERR && "$@") >"$work/log" 2>&1 &
  wait $! || status=$?
  if ((status)); then
    failed=$((failed + 1))
    cat "$work/log"
  fi
  line="$( ((status == 0)) && echo 'ok     ' || echo FAILED)  $name ($((SECONDS - start)) s)"
  echo "$line"
  report+=("$line")
}

# skip NAME REASON
skip() {
  report+=("skipped  $1: $2")
  echo "${report[-1]}"
}

# ---- Building ----

# The tree of the last commit in the new folder $1, whatever lies about here.
export_commit() { mkdir -p "$1" && git -c tar.umask=0022 archive "$commit" | tar -x -C "$1"; }

# build_both SOURCE TO: an sdist and a wheel of the tree SOURCE. setuptools puts the times, owners and
# order of its own files into an sdist, so it is packed anew.
build_both() {
  "$python" -m build --outdir "$2" --sdist "$1"
  "$python" -m build --outdir "$2" --wheel "$1"
  "$python" - "$2"/*.tar.gz <<'PYTHON'
import gzip, io, os, sys, tarfile

epoch = int(os.environ["SOURCE_DATE_EPOCH"])
plain = io.BytesIO()
with tarfile.open(sys.argv[1]) as old, tarfile.open(fileobj=plain, mode="w") as new:
    for member in sorted(old.getmembers(), key=lambda each: each.name):
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime, member.pax_headers = epoch, {}
        member.mode = 0o755 if member.mode & 0o100 else 0o644
        new.addfile(member, old.extractfile(member) if member.isfile() else None)
with open(sys.argv[1], "wb") as file, gzip.GzipFile("", "wb", 9, file, epoch) as packed:
    packed.write(plain.getvalue())
PYTHON
}

build() {
  export_commit "$work/source"
  build_both "$work/source" "$work/dist"
}

# From another folder, on another day, elsewhere.
build_again() {
  export TZ=Pacific/Auckland
  export_commit "$work/elsewhere/tree"
  find "$work/elsewhere/tree" -exec touch -d '2001-02-03' {} +
  build_both "$work/elsewhere/tree" "$work/again"
  diff -r "$work/dist" "$work/again"
}

build_from_sdist() {
  mkdir "$work/unpacked"
  tar -xf "$work"/dist/*.tar.gz -C "$work/unpacked" --strip-components 1
  "$python" -m build --outdir "$work/from_sdist" --wheel "$work/unpacked"
  cmp "$work"/dist/*.whl "$work"/from_sdist/*.whl
}

# ---- What the archives hold ----

# Every file of the package that git knows is in the wheel, and nothing else but its metadata: the
# stylesheet, scripts and template of the page, py.typed, the schema's stub, both licences.
wheel_holds_the_package() {
  "$python" -c 'import sys, zipfile; print(*zipfile.ZipFile(sys.argv[1]).namelist(), sep="\n")' \
    "$work"/dist/*.whl | sort >"$work/held"
  diff <(git ls-tree -r --name-only "$commit" caffe_fold | sort) \
    <(grep -v '^caffe_fold-[^/]*\.dist-info/' "$work/held")
  for name in caffe_fold/py.typed caffe_fold/caffe_pb2.pyi caffe_fold/page/page.{css,js,html.j2} \
    '.*\.dist-info/licenses/LICENSE' '.*\.dist-info/licenses/caffe_fold/page/vendor/dagre-LICENSE'; do
    grep -qx "$name" "$work/held" || { echo "not in the wheel: $name" && return 1; }
  done
}

# All that git knows is in the sdist: tests, proto, scripts, docs and the texts.
sdist_holds_the_repository() {
  diff <(git ls-tree -r --name-only "$commit" | sort) \
    <(tar -tf "$work"/dist/*.tar.gz | grep -v '/$' | sed 's|^[^/]*/||' |
      grep -vE '^(PKG-INFO|setup\.cfg|caffe_fold\.egg-info/.*)$' | sort)
}

# The version stands in the names of both, and CHANGELOG.md has it.
version_is_told() {
  [[ -f $work/dist/caffe_fold-$version.tar.gz && -f $work/dist/caffe_fold-$version-py3-none-any.whl ]]
  grep -E "^## \[$version\] - [0-9]{4}-[0-9]{2}-[0-9]{2}$|^Becomes $version," CHANGELOG.md
}

# ---- Installed ----

# try_install VENV PYTHON REQUIREMENT...: the wheel in a new environment, and all that a user does with
# it first.
try_install() {
  local venv=$1 python=$2 run
  shift 2
  "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --only-binary :all: "$work"/dist/*.whl "$@"
  "$venv/bin/python" -m pip check
  "$venv/bin/python" -m pip list
  run=$(mktemp -d "$work/run.XXXXXX")
  cd "$run"
  export PATH=$venv/bin:$PATH
  [[ $(caffe-fold --version) == "caffe-fold $version" ]]
  [[ $(python -m caffe_fold --version) == "caffe-fold $version" ]]
  python -I -c 'import caffe_fold, sys; assert caffe_fold.__file__.startswith(sys.prefix)'
  python -I -c 'import caffe_fold; [getattr(caffe_fold, name) for name in caffe_fold.__all__]'
  caffe-fold demo
  caffe-fold --model caffe-fold-demo/mobilenet_ssd.prototxt \
    --weights caffe-fold-demo/mobilenet_ssd.caffemodel \
    --output-model folded.prototxt --output-weights folded.caffemodel
  [[ -s folded.prototxt && -s folded.caffemodel ]]
  completion_works
}

completion_works() {
  for shell in bash zsh fish; do
    [[ $(_CAFFE_FOLD_COMPLETE=${shell}_source caffe-fold) == *_CAFFE_FOLD_COMPLETE=* ]]
  done
  [[ $(complete_in_bash 'caffe-fold ver' 1) == plain,verify ]]
  [[ $(complete_in_bash 'caffe-fold fold --mo' 2) == plain,--model ]]
  [[ $(complete_in_bash 'caffe-fold --mo' 1) == plain,--model ]]
  [[ $(complete_in_bash 'caffe-fold --model ne' 2) == file,ne ]]
}

complete_in_bash() {
  _CAFFE_FOLD_COMPLETE=bash_complete COMP_WORDS=$1 COMP_CWORD=$2 caffe-fold
}

# Prints what pip misses where a requirement has no wheel for the Python $1; fails if there are all.
missing_wheel() {
  local python=$1
  shift
  ! "$python" -m pip download --quiet --no-deps --only-binary :all: --dest "$work/wheels" "$@" \
    >"$work/wheels.log" 2>&1 && grep -o 'No matching distribution .*' "$work/wheels.log"
}

# ---- The run ----

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' caffe_fold/_version.py)
mapfile -t oldest < <(lower_bounds dependencies)
((${#oldest[@]} == 3)) # or pyproject.toml is written otherwise than this reads it
if [[ -n $(git status --porcelain) ]]; then
  echo 'note: there are changes that are not committed; they are not in what is checked'
fi

step 'sdist and wheel' build
((failed == 0)) || exit 1
step 'the same bytes when built again' build_again
step 'the same wheel from the sdist' build_from_sdist
step 'twine check' "$python" -m twine check --strict "$work"/dist/*
step 'the wheel holds the package' wheel_holds_the_package
step 'the sdist holds the repository' sdist_holds_the_repository
step "version $version" version_is_told

for each in $(supported_pythons); do
  found=$(find_python "$each")
  if [[ -z $found ]]; then
    skip "Python $each" 'it is not here'
    continue
  fi
  if why=$(missing_wheel "$found" "${oldest[@]}"); then
    skip "Python $each, oldest dependencies" "$why"
  else
    step "Python $each, oldest dependencies" try_install "$work/$each-old" "$found" "${oldest[@]}"
  fi
  step "Python $each, newest dependencies" try_install "$work/$each-new" "$found"
done

printf '\n==> release check of %s, %s (%s s)\n' "$version" "${commit:0:7}" "$SECONDS"
printf '%s\n' "${report[@]}"
if ((failed)); then
  echo "$failed failed"
  exit 1
fi
rm -rf dist && cp -r "$work/dist" dist
(cd dist && sha256sum -- *)
