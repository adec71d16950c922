# For .ci/run and scripts/release_check.sh, which read it from the project's root: Pythons of other
# versions, and the oldest releases that pyproject.toml allows.

# Prints the interpreter of the version $1, or nothing. Under pyenv the command
# on the PATH may be a shim that refuses to run, so each is tried.
find_python() {
  local candidate
  for candidate in "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python "python$1"; do
    if "$candidate" -c "import ensurepip, sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" \
      >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
}

# Prints the lower bounds in the list $1 of pyproject.toml, such as "dependencies" or the name of an
# extra, each as a requirement of that release: click>=8.1,<9 as click==8.1, which is 8.1.0.
lower_bounds() {
  sed -n "/^$1 = \[/,/^\]/s/^ *\"\([^>\"]*\)>=\([^,\"]*\).*/\1==\2/p" pyproject.toml
}

# Prints the Pythons that pyproject.toml names as supported, oldest first.
supported_pythons() {
  sed -n 's/^ *"Programming Language :: Python :: \(3\.[0-9]*\)",$/\1/p' pyproject.toml
}
