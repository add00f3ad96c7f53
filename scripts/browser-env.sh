# Source this in bash: sets CHROME and CHROMEDRIVER, the programs the browser tests use, where they are found.
# Set beforehand, they decide.
# shellcheck shell=bash

_likeness_browser() {
    # In a subshell, so that common.sh's shell options and names don't leak into an interactive shell.
    (
        # shellcheck source=scripts/common.sh
        . "$(dirname "${BASH_SOURCE[0]}")/common.sh"
        first_of() { # first_of NAME PROGRAM...
            local name=$1 program
            shift
            for program in "$@"; do
                if [ -n "$program" ] && have "$program"; then
                    printf 'export %s=%q\n' "$name" "$(command -v "$program")"
                    return 0
                fi
            done
        }
        first_of CHROME "${CHROME:-}" "$cache/browser/bin/chrome" chromium google-chrome google-chrome-stable chromium-browser
        first_of CHROMEDRIVER "${CHROMEDRIVER:-}" "$cache/browser/bin/chromedriver" chromedriver
    )
}
eval "$(_likeness_browser)"
unset -f _likeness_browser
