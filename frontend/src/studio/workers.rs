//! The photo workers as the page sees them: a photo goes in, an answer comes back, always. A worker that dies takes one
//! photo with it; the next photo gets a new worker.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use gloo_timers::callback::Timeout;
use js_sys::{Array, ArrayBuffer};
use leptos::prelude::window;
use wasm_bindgen::prelude::*;
use web_sys::{Blob, MessageEvent, Worker};

use super::protocol::{Answer, Ask, Made, WORKER_URL};

/// WASM memory never shrinks: a worker that has nothing to do for this long is ended, which gives all of it back.
const IDLE_END_MS: u32 = 30_000;
/// So many starts in a row without a photo done mean that it cannot start at all.
const MAX_FAILED_STARTS: u32 = 3;

const CRASHED: &str = "This photo stopped the photo reader: it is damaged, or needs more memory than there is. Save it \
                       again smaller and drop that.";
const CANNOT_START: &str =
    "The photo reader did not start. Reload the page; if that does not help, try another browser.";

/// What came of an `Ask`.
pub enum Outcome {
    Made {
        made: Made,
        /// JPEG.
        preview: Option<ArrayBuffer>,
        png: ArrayBuffer,
    },
    /// In the person's words.
    Failed(String),
}

type Reply = Box<dyn FnOnce(Outcome)>;

struct Task {
    ask: Ask,
    file: Blob,
    reply: Reply,
}

enum State {
    Starting,
    Idle,
    Busy(Reply),
}

struct Slot {
    id: u64,
    worker: Worker,
    state: State,
    /// The photo it holds decoded.
    holds: Option<u64>,
    on_message: Closure<dyn FnMut(MessageEvent)>,
    on_error: Closure<dyn FnMut(web_sys::Event)>,
}

#[derive(Default)]
struct Pool {
    slots: RefCell<Vec<Slot>>,
    queue: RefCell<VecDeque<Task>>,
    next_slot: Cell<u64>,
    failed_starts: Cell<u32>,
    idle: RefCell<Option<Timeout>>,
}

thread_local! {
    /// One for all subjects: the workers share the machine's cores and memory anyway.
    static POOL: Rc<Pool> = Rc::new(Pool::default());
}

/// Asks a worker. `urgent` goes first: someone looks at that photo right now.
pub fn ask(ask: Ask, file: &Blob, urgent: bool, reply: impl FnOnce(Outcome) + 'static) {
    let task = Task {
        ask,
        file: file.clone(),
        reply: Box::new(reply),
    };
    POOL.with(|pool| {
        if urgent {
            pool.queue.borrow_mut().push_front(task);
        } else {
            pool.queue.borrow_mut().push_back(task);
        }
        pool.pump();
    });
}

/// Two when there are cores for them: on two cores a second one gains nothing and doubles the memory.
fn most_workers() -> usize {
    if window().navigator().hardware_concurrency() >= 4.0 {
        2
    } else {
        1
    }
}

impl Pool {
    /// Hands waiting photos to idle workers, and starts workers while photos wait.
    fn pump(self: &Rc<Self>) {
        self.idle.take();
        loop {
            let Some(task) = self.queue.borrow_mut().pop_front() else {
                break;
            };
            if let Err(task) = self.hand_out(task) {
                self.queue.borrow_mut().push_front(task);
                break;
            }
        }
        let waiting = self.queue.borrow().len();
        let starting = self
            .slots
            .borrow()
            .iter()
            .filter(|s| matches!(s.state, State::Starting))
            .count();
        if waiting > starting && self.slots.borrow().len() < most_workers() {
            self.start();
        }
        if waiting == 0 {
            let pool = Rc::clone(self);
            *self.idle.borrow_mut() = Some(Timeout::new(IDLE_END_MS, move || pool.end_idle()));
        }
    }

    /// To an idle worker, best one that holds the photo already. Gives the task back when all are busy.
    fn hand_out(&self, task: Task) -> Result<(), Task> {
        let mut slots = self.slots.borrow_mut();
        let idle = |slot: &&mut Slot| matches!(slot.state, State::Idle);
        let holder = slots
            .iter()
            .position(|s| matches!(s.state, State::Idle) && s.holds == Some(task.ask.photo));
        let slot = match holder {
            Some(at) => slots.get_mut(at),
            None => slots.iter_mut().find(idle),
        };
        let Some(slot) = slot else { return Err(task) };
        let json = serde_json::to_string(&task.ask).unwrap_or_default();
        let message = Array::of2(&json.into(), &task.file);
        if slot.worker.post_message(&message).is_ok() {
            slot.holds = Some(task.ask.photo);
            slot.state = State::Busy(task.reply);
        } else {
            (task.reply)(Outcome::Failed(CANNOT_START.into()));
        }
        Ok(())
    }

    fn start(self: &Rc<Self>) {
        let Ok(worker) = Worker::new(WORKER_URL) else {
            self.give_up();
            return;
        };
        let id = self.next_slot.get();
        self.next_slot.set(id + 1);
        let pool = Rc::clone(self);
        let on_message = Closure::new(move |event: MessageEvent| pool.on_message(id, &event));
        let pool = Rc::clone(self);
        let on_error = Closure::new(move |event: web_sys::Event| {
            event.prevent_default();
            pool.on_crash(id);
        });
        worker.set_onmessage(Some(on_message.as_ref().unchecked_ref()));
        worker.set_onerror(Some(on_error.as_ref().unchecked_ref()));
        self.slots.borrow_mut().push(Slot {
            id,
            worker,
            state: State::Starting,
            holds: None,
            on_message,
            on_error,
        });
    }

    fn on_message(self: &Rc<Self>, id: u64, event: &MessageEvent) {
        let message: Array = event.data().unchecked_into();
        let answer = message
            .get(0)
            .as_string()
            .and_then(|json| serde_json::from_str(&json).ok());
        let state = {
            let mut slots = self.slots.borrow_mut();
            let Some(slot) = slots.iter_mut().find(|slot| slot.id == id) else {
                return;
            };
            std::mem::replace(&mut slot.state, State::Idle)
        };
        if let State::Busy(reply) = state {
            self.failed_starts.set(0);
            reply(match answer {
                Some(Answer::Made(made)) => Outcome::Made {
                    made,
                    preview: message.get(1).dyn_into().ok(),
                    png: message.get(2).unchecked_into(),
                },
                Some(Answer::Failed { message }) => Outcome::Failed(message),
                Some(Answer::Ready) | None => Outcome::Failed(CANNOT_START.into()),
            });
        }
        self.pump();
    }

    /// A panic, a lack of memory, or a start that failed.
    fn on_crash(self: &Rc<Self>, id: u64) {
        let slot = {
            let mut slots = self.slots.borrow_mut();
            let Some(at) = slots.iter().position(|slot| slot.id == id) else {
                return;
            };
            slots.remove(at)
        };
        let Slot {
            worker,
            state,
            on_message,
            on_error,
            ..
        } = slot;
        worker.terminate();
        match state {
            State::Busy(reply) => reply(Outcome::Failed(CRASHED.into())),
            State::Starting => self.failed_starts.set(self.failed_starts.get() + 1),
            State::Idle => {}
        }
        // This runs inside one of these closures: they may go only when it has returned.
        Timeout::new(0, move || drop((on_message, on_error))).forget();
        if self.failed_starts.get() < MAX_FAILED_STARTS {
            self.pump();
        } else {
            self.give_up();
        }
    }

    fn give_up(&self) {
        self.failed_starts.set(0);
        let waiting: Vec<Task> = self.queue.borrow_mut().drain(..).collect();
        for task in waiting {
            (task.reply)(Outcome::Failed(CANNOT_START.into()));
        }
    }

    fn end_idle(&self) {
        self.slots.borrow_mut().retain(|slot| {
            let idle = matches!(slot.state, State::Idle);
            if idle {
                slot.worker.terminate();
            }
            !idle
        });
    }
}
