"""Make sure a Chromium is there for the browser tests: the system's, else Debian's, else Playwright's own build."""

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")


def find_browser() -> str | None:
    """Return the path of an installed Chromium-family browser, `$NSW_BROWSER` first, or None."""
    candidates = [os.environ.get("NSW_BROWSER", ""), *NAMES]
    found = next((path for name in candidates if name and (path := shutil.which(name))), None)
    if found:
        return found
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        bundled = playwright.chromium.executable_path
    return bundled if os.path.exists(bundled) else None


def main() -> int:
    found = find_browser()
    if not found and shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        for command in (["apt-get", "update", "-q"], ["apt-get", "install", "-q", "-y", "--no-install-recommends", "chromium"]):
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        found = find_browser()
    if not found:
        subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=True)
        found = find_browser()
    print(f"Browser for the tests: {found}" if found else "No browser could be installed: the browser tests will be skipped.")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
