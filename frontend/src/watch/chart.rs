//! The loss chart: faint raw curves, smoothed lines over them, axes with units, and the same in words.

use app::chart::{self, XY};
use app::run::{Run, StepPoint};
use leptos::prelude::*;
use leptos::svg::Svg;
use wasm_bindgen::JsCast;
use wasm_bindgen::closure::Closure;
use web_sys::ResizeObserver;

use crate::net::live::Live;

const LEFT: f64 = 40.0;
const RIGHT: f64 = 8.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 36.0;
/// A raw curve denser than this is a solid band.
const PX_PER_COLUMN: f64 = 2.0;

/// Size of the drawing in CSS pixels: the chart is drawn for the room it has, so that its words keep their size.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Size {
    width: f64,
    height: f64,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            width: 480.0,
            height: 260.0,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Curve {
    raw: String,
    smooth: String,
    last: f64,
}

/// Everything the drawing needs, worked out once for each change.
#[derive(Clone, Debug, Default, PartialEq)]
struct Drawing {
    size: Size,
    x_ticks: Vec<(f64, String)>,
    y_ticks: Vec<(f64, String)>,
    instance: Option<Curve>,
    class: Option<Curve>,
    summary: String,
}

struct Scale {
    size: Size,
    x_max: f64,
    y_max: f64,
}

impl Scale {
    fn x(&self, x: f64) -> f64 {
        LEFT + x / self.x_max * (self.size.width - LEFT - RIGHT)
    }

    /// Spikes above the scale stay at its top edge.
    fn y(&self, y: f64) -> f64 {
        TOP + (1.0 - (y / self.y_max).min(1.0)) * (self.size.height - TOP - BOTTOM)
    }

    fn path(&self, points: &[XY]) -> String {
        let mut path = String::with_capacity(points.len() * 14);
        for (i, p) in points.iter().enumerate() {
            let command = if i == 0 { 'M' } else { 'L' };
            path.push_str(&format!("{command}{:.1} {:.1}", self.x(p.x), self.y(p.y)));
        }
        path
    }

    fn curve(&self, points: &[XY]) -> Option<Curve> {
        let columns = (self.size.width / PX_PER_COLUMN) as usize;
        let smooth = chart::smooth(points, chart::window(points.len()));
        let last = smooth.last()?.y;
        Some(Curve {
            raw: self.path(&chart::thin(points, columns)),
            smooth: self.path(&chart::thin(&smooth, columns)),
            last,
        })
    }
}

fn points(run: &Run, value: impl Fn(&StepPoint) -> Option<f32>) -> Vec<XY> {
    let of = |p: &StepPoint| {
        Some(XY {
            x: f64::from(p.step),
            y: f64::from(value(p)?),
        })
    };
    run.points.iter().filter_map(of).filter(|p| p.y.is_finite()).collect()
}

fn draw(run: &Run, size: Size) -> Drawing {
    let instance = points(run, |p| Some(p.instance_loss));
    let class = points(run, |p| p.prior_loss);
    let all = instance.iter().chain(&class).map(|p| p.y);
    // A few spikes must not press everything else to the floor.
    let high = chart::quantile(all, 0.98).unwrap_or(1.0);
    let y_ticks = chart::ticks(high, 4);
    let x_most = f64::from(run.steps.max(run.step()).max(1));
    let x_ticks = chart::ticks(x_most, 4);
    let scale = Scale {
        size,
        x_max: x_most,
        y_max: y_ticks.last().copied().unwrap_or(1.0),
    };
    let step_of = |ticks: &[f64]| ticks.get(1).copied().unwrap_or(1.0);
    let label = |ticks: &[f64], t: f64| chart::label(t, step_of(ticks));
    // There is no half step, and nothing to measure before the first.
    let is_step = |t: &&f64| **t <= x_most && t.fract() == 0.0 && !instance.is_empty();
    let is_value = |_: &&f64| !instance.is_empty();
    let drawing = Drawing {
        size,
        x_ticks: x_ticks
            .iter()
            .filter(is_step)
            .map(|t| (scale.x(*t), label(&x_ticks, *t)))
            .collect(),
        y_ticks: y_ticks
            .iter()
            .filter(is_value)
            .map(|t| (scale.y(*t), label(&y_ticks, *t)))
            .collect(),
        instance: scale.curve(&instance),
        class: scale.curve(&class),
        summary: String::new(),
    };
    let summary = in_words(run, &drawing);
    Drawing { summary, ..drawing }
}

fn in_words(run: &Run, drawing: &Drawing) -> String {
    let Some(instance) = &drawing.instance else {
        return "Loss chart. No step is done yet.".into();
    };
    let class = drawing
        .class
        .as_ref()
        .map(|c| format!(", class loss {:.3}", c.last))
        .unwrap_or_default();
    format!(
        "Loss chart. After step {} of {} the smoothed instance loss is {:.3}{class}.",
        run.step(),
        run.steps,
        instance.last
    )
}

/// The element's size, followed while it is shown.
fn measured(plot: NodeRef<Svg>) -> ReadSignal<Size> {
    let (size, set_size) = signal(Size::default());
    Effect::new(move |_| {
        let Some(element) = plot.get() else { return };
        let target = element.clone();
        let observed = Closure::<dyn FnMut()>::new(move || {
            let size = target.get_bounding_client_rect();
            // Without a size it is not shown: the last one stays.
            if size.width() > LEFT + RIGHT && size.height() > TOP + BOTTOM {
                set_size.set(Size {
                    width: size.width(),
                    height: size.height(),
                });
            }
        });
        let Ok(observer) = ResizeObserver::new(observed.as_ref().unchecked_ref()) else {
            return;
        };
        observer.observe(&element);
        let kept = StoredValue::new_local((observer, observed));
        on_cleanup(move || kept.with_value(|(observer, _)| observer.disconnect()));
    });
    size
}

#[component]
pub fn LossChart(live: Live) -> impl IntoView {
    let plot = NodeRef::<Svg>::new();
    let size = measured(plot);
    let drawing = Memo::new(move |_| live.run.with(|run| draw(run, size.get())));
    let empty = move || drawing.with(|d| d.instance.is_none());
    let figure = |curve: Option<&Curve>| curve.map(|c| format!("{:.3}", c.last));
    let instance = move || drawing.with(|d| figure(d.instance.as_ref()));
    let class = move || drawing.with(|d| figure(d.class.as_ref()));
    view! {
        <figure class="chart" data-points=move || live.run.with(|run| run.points.len())>
            <figcaption>
                <span class="chart-name">"Loss"</span>
                <span class="key key-instance">"your photos " <b class="figures">{instance}</b></span>
                <Show when=move || class().is_some()>
                    <span class="key key-class">"its kind " <b class="figures">{class}</b></span>
                </Show>
            </figcaption>
            <div class="chart-box">
                <svg node_ref=plot role="img" aria-label=move || drawing.with(|d| d.summary.clone())>
                    <Axes drawing />
                    <Curves drawing />
                </svg>
                <Show when=empty>
                    <p class="chart-empty quiet">"The curve begins with the first step."</p>
                </Show>
            </div>
        </figure>
    }
}

#[component]
fn Axes(drawing: Memo<Drawing>) -> impl IntoView {
    let (width, height) = (
        move || drawing.with(|d| d.size.width),
        move || drawing.with(|d| d.size.height),
    );
    let y_axis = move || {
        let ticks = drawing.with(|d| d.y_ticks.clone());
        ticks
            .into_iter()
            .map(|(y, label)| {
                view! {
                    <line class="grid" x1=LEFT x2=width() - RIGHT y1=y y2=y />
                    <text class="axis-label" x=LEFT - 8.0 y=y + 4.0 text-anchor="end">{label}</text>
                }
            })
            .collect_view()
    };
    let x_axis = move || {
        let ticks = drawing.with(|d| d.x_ticks.clone());
        let middle = |x: f64| match x {
            x if x > width() - RIGHT - 16.0 => "end",
            _ => "middle",
        };
        ticks
            .into_iter()
            .map(|(x, label)| view! { <text class="axis-label" x=x y=height() - BOTTOM + 16.0 text-anchor=middle(x)>{label}</text> })
            .collect_view()
    };
    view! {
        <g aria-hidden="true">
            {y_axis}
            {x_axis}
            <text class="axis-label" x=move || (LEFT + width() - RIGHT) / 2.0 y=move || height() - 4.0 text-anchor="middle">"step"</text>
        </g>
    }
}

/// Which of the two curves.
type Pick = fn(&Drawing) -> Option<&Curve>;

#[component]
fn Curves(drawing: Memo<Drawing>) -> impl IntoView {
    let path = move |pick: Pick, part: fn(&Curve) -> &String| {
        move || drawing.with(|d| pick(d).map(part).cloned().unwrap_or_default())
    };
    let (instance, class): (Pick, Pick) = (|d| d.instance.as_ref(), |d| d.class.as_ref());
    view! {
        <path class="curve raw class" d=path(class, |c| &c.raw) />
        <path class="curve raw instance" d=path(instance, |c| &c.raw) />
        <path class="curve class" d=path(class, |c| &c.smooth) />
        <path class="curve instance" d=path(instance, |c| &c.smooth) />
    }
}
