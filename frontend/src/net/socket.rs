//! A WebSocket with its handlers, closed when dropped, and the moments in which it should be looked after.

use std::cell::Cell;
use std::rc::Rc;

use leptos::prelude::*;
use wasm_bindgen::JsCast;
use wasm_bindgen::closure::Closure;
use web_sys::{BinaryType, MessageEvent, WebSocket};

pub struct Socket {
    inner: WebSocket,
    _on_open: Closure<dyn FnMut()>,
    _on_message: Closure<dyn FnMut(MessageEvent)>,
    _on_close: Closure<dyn FnMut()>,
}

impl Socket {
    /// Starts connecting. `None` when the browser refuses to try.
    pub fn open(
        on_open: impl FnMut() + 'static,
        mut on_text: impl FnMut(String) + 'static,
        mut on_binary: impl FnMut(Vec<u8>) + 'static,
        on_close: impl FnMut() + 'static,
    ) -> Option<Self> {
        let location = window().location();
        let scheme = if location.protocol().ok()? == "https:" {
            "wss"
        } else {
            "ws"
        };
        let inner = WebSocket::new(&format!("{scheme}://{}/api/ws", location.host().ok()?)).ok()?;
        inner.set_binary_type(BinaryType::Arraybuffer);
        let on_message = Closure::new(move |message: MessageEvent| {
            let data = message.data();
            if let Some(text) = data.as_string() {
                on_text(text);
            } else if let Ok(buffer) = data.dyn_into::<js_sys::ArrayBuffer>() {
                on_binary(js_sys::Uint8Array::new(&buffer).to_vec());
            }
        });
        let on_open = Closure::new(on_open);
        let on_close = Closure::new(on_close);
        inner.set_onopen(Some(on_open.as_ref().unchecked_ref()));
        inner.set_onmessage(Some(on_message.as_ref().unchecked_ref()));
        inner.set_onclose(Some(on_close.as_ref().unchecked_ref()));
        Some(Self {
            inner,
            _on_open: on_open,
            _on_message: on_message,
            _on_close: on_close,
        })
    }

    pub fn is_open(&self) -> bool {
        self.inner.ready_state() == WebSocket::OPEN
    }

    /// Lost when not open: what must arrive is asked for again on opening.
    pub fn send(&self, text: &str) {
        if self.is_open() {
            let _closed_meanwhile = self.inner.send_with_str(text);
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.inner.set_onopen(None);
        self.inner.set_onmessage(None);
        self.inner.set_onclose(None);
        let _already_closed = self.inner.close();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// Back on the network, or in view after a moment.
    Shortly,
    /// Hidden long enough for a laptop to have slept: an open connection may be dead without knowing it.
    AfterLongAbsence,
}

const LONG_ABSENCE_MS: f64 = 20_000.0;

/// Calls `woken` at each such moment, as long as the page lives.
pub fn on_wake(woken: impl Fn(Woken) + 'static) {
    let woken = Rc::new(woken);
    let on_line = Rc::clone(&woken);
    let _for_good = window_event_listener_untyped("online", move |_| on_line(Woken::AfterLongAbsence));
    let hidden_at = Cell::new(None::<f64>);
    let seen = Closure::<dyn FnMut()>::new(move || {
        if document().hidden() {
            hidden_at.set(Some(js_sys::Date::now()));
            return;
        }
        let away = hidden_at.take().map_or(0.0, |since| js_sys::Date::now() - since);
        woken(if away > LONG_ABSENCE_MS {
            Woken::AfterLongAbsence
        } else {
            Woken::Shortly
        });
    });
    let listener = seen.as_ref().unchecked_ref();
    if document()
        .add_event_listener_with_callback("visibilitychange", listener)
        .is_ok()
    {
        seen.forget();
    }
}
