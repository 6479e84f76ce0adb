"""A folder opened in a browser: it logs in, shows what is there, and downloads a file."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from tests.support.browser import chromium
from tests.support.clients import s3_client
from tests.support.server import serving

KEYS = {"LODE_ACCESS_KEY": "someone", "LODE_SECRET_KEY": "secret-key"}
NAME = "Ünï & <b>.bin"


def test_a_browser_lists_a_folder_and_downloads_a_file(tmp_path: Path) -> None:
    data = os.urandom(300_000)
    options = ("--dav", "127.0.0.1:0", "--workers", "1")
    with serving(tmp_path / "store", *options, environment=KEYS) as server:
        s3 = s3_client(server, keys=("someone", "secret-key"))
        s3.create_bucket(Bucket="pictures")
        s3.put_object(Bucket="pictures", Key="2024/summer/x.jpg", Body=b"x")
        s3.put_object(Bucket="pictures", Key="2024/" + NAME, Body=data)
        s3.close()
        downloads = tmp_path / "downloads"
        with chromium(tmp_path / "profile") as browser:
            browser.send(
                "Browser.setDownloadBehavior",
                behavior="allow",
                downloadPath=str(downloads),
                eventsEnabled=True,
            )
            browser.go(server.dav_url.replace("//", "//someone:secret-key@", 1))
            assert browser.evaluate("document.querySelector('td a').innerText") == "pictures/"
            browser.go(f"{server.dav_url}/pictures/2024/")
            shown = browser.evaluate("[...document.querySelectorAll('td a')].map(a => a.innerText)")
            assert shown == ["summer/", NAME]
            assert browser.evaluate("document.querySelectorAll('b').length") == 0
            links = browser.evaluate("[...document.querySelectorAll('td a')].map(a => a.pathname)")
            assert links[1] == "/pictures/2024/" + quote(NAME, safe="")
            browser.evaluate("document.querySelectorAll('td a')[1].click()")
            done = browser.wait_for("Browser.downloadProgress", state="completed")
            assert done["receivedBytes"] == len(data)
        assert [file.read_bytes() for file in downloads.iterdir()] == [data]
        assert server.stop() == 0
        assert server.troubles == [] or all(
            "one drive" in str(trouble["event"]) for trouble in server.troubles
        )
