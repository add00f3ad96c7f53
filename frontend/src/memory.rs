//! What the browser remembers between visits: the draft, the theme. Losing it loses nothing but typing.

use leptos::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn storage() -> Option<web_sys::Storage> {
    // Refused in some private windows.
    window().local_storage().ok().flatten()
}

/// `None` when there is nothing, or something of another version.
pub fn recall<T: DeserializeOwned>(name: &str) -> Option<T> {
    let text = storage()?.get_item(name).ok().flatten()?;
    serde_json::from_str(&text).ok()
}

pub fn keep(name: &str, value: &impl Serialize) {
    if let (Some(storage), Ok(text)) = (storage(), serde_json::to_string(value)) {
        let _full = storage.set_item(name, &text);
    }
}

/// A signal that is remembered.
pub fn remembered<T>(name: &'static str) -> RwSignal<T>
where
    T: Default + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    let signal = RwSignal::new(recall(name).unwrap_or_default());
    Effect::new(move |_| signal.with(|value| keep(name, value)));
    signal
}
