//! Headless Chromium, driven by chromedriver.

use std::time::Duration;

use shepherd_monitor::demo::reaper::{Reaper, ShutdownSpec};
use thirtyfour::prelude::*;

use super::wait::eventually;

/// A browser with an empty profile; ended when dropped and when the test dies.
pub(crate) struct Browser {
    driver: WebDriver,
    _server: Reaper,
}

impl Browser {
    /// Starts a browser with a window of `width` × `height` pixels.
    pub(crate) async fn start(width: u32, height: u32) -> Self {
        super::tls();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Reaper::start("shepherd-browser", ShutdownSpec { signal: "TERM", epilogue: "" }).unwrap();
        // Chromium leaves temporary files behind when killed; they are removed with the folder.
        let temporary = format!("TMPDIR={}", server.folder().display());
        server.serve(&["env", &temporary, "chromedriver", &format!("--port={port}")]).unwrap();
        let profile = server.folder().join("profile");
        let mut capabilities = DesiredCapabilities::chrome();
        for arg in [
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            &format!("--window-size={width},{height}"),
            &format!("--user-data-dir={}", profile.display()),
        ] {
            capabilities.add_arg(arg).unwrap();
        }
        let driver = eventually("the browser starts", Duration::from_secs(40), || async {
            WebDriver::new(format!("http://127.0.0.1:{port}"), capabilities.clone()).await
        })
        .await;
        Self { driver, _server: server }
    }

    pub(crate) fn driver(&self) -> &WebDriver {
        &self.driver
    }

    /// Returns the value of a JavaScript expression on the page.
    pub(crate) async fn value(&self, expression: &str) -> serde_json::Value {
        self.evaluate(expression).await.unwrap()
    }

    async fn evaluate(&self, expression: &str) -> WebDriverResult<serde_json::Value> {
        let result = self.driver.execute(format!("return {expression}"), Vec::new()).await?;
        Ok(result.json().clone())
    }

    /// Waits until a JavaScript expression is true. Errors, such as missing elements, count as not yet true.
    pub(crate) async fn until(&self, what: &str, expression: &str) {
        eventually(what, Duration::from_secs(30), || async {
            let value = match self.evaluate(expression).await {
                Ok(value) if value == true => return Ok(()),
                Ok(value) => value.to_string(),
                Err(error) => error.to_string(),
            };
            Err(format!("{expression} is {value}; the page says {}", self.text().await))
        })
        .await;
    }

    /// Visible text of the page.
    pub(crate) async fn text(&self) -> String {
        self.value("document.body?.innerText").await.as_str().unwrap_or_default().to_owned()
    }

    pub(crate) async fn press(&self, keys: &str) {
        self.driver.action_chain().send_keys(keys).perform().await.unwrap();
    }

    pub(crate) async fn quit(self) {
        self.driver.quit().await.unwrap();
    }
}
