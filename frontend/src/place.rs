//! Where in the flow the page is: a hash route, so that a reload or a link keeps the place.

use app::job::JobId;
use leptos::prelude::*;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Photos,
    Subject,
    Train,
    /// Without a job: the newest.
    Run(Option<JobId>),
    Results(Option<JobId>),
}

impl Place {
    /// An unknown hash is the start.
    pub fn from_hash(hash: &str) -> Self {
        let path = hash.trim_start_matches('#');
        let (name, job) = path.split_once('/').unwrap_or((path, ""));
        let job = JobId::parse(job).ok();
        match name {
            "subject" => Self::Subject,
            "train" => Self::Train,
            "run" => Self::Run(job),
            "results" => Self::Results(job),
            _ => Self::Photos,
        }
    }

    pub fn hash(&self) -> String {
        let with = |name: &str, job: &Option<JobId>| match job {
            Some(job) => format!("#{name}/{job}"),
            None => format!("#{name}"),
        };
        match self {
            Self::Photos => "#photos".into(),
            Self::Subject => "#subject".into(),
            Self::Train => "#train".into(),
            Self::Run(job) => with("run", job),
            Self::Results(job) => with("results", job),
        }
    }

    pub fn job(&self) -> Option<&JobId> {
        match self {
            Self::Run(job) | Self::Results(job) => job.as_ref(),
            _ => None,
        }
    }

    /// Position in the flow, from 0.
    pub fn index(&self) -> usize {
        match self {
            Self::Photos => 0,
            Self::Subject => 1,
            Self::Train => 2,
            Self::Run(_) => 3,
            Self::Results(_) => 4,
        }
    }
}

fn current() -> Place {
    Place::from_hash(&window().location().hash().unwrap_or_default())
}

/// The place in the address bar, followed.
pub fn follow() -> ReadSignal<Place> {
    let (place, set_place) = signal(current());
    let _kept_for_good = window_event_listener(leptos::ev::hashchange, move |_| set_place.set(current()));
    place
}

/// Goes there; the listener of `follow` does the rest.
pub fn go(place: &Place) {
    // A browser that refuses leaves the person where they are, which they see.
    let _refused = window().location().set_hash(&place.hash());
}
