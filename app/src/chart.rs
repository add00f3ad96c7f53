//! Arithmetic of the loss chart: smoothing, thinning out, axis ticks. Pictures are drawn by the page.

/// One point of a curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct XY {
    pub x: f64,
    pub y: f64,
}

/// Running mean that forgets, with the bias of its start taken out: the first value is itself, not pulled to zero.
/// `window` is about how many values it remembers. Values that are not finite are skipped.
pub fn smooth(points: &[XY], window: f64) -> Vec<XY> {
    let keep = 1.0 - 1.0 / window.max(1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let finite = points.iter().filter(|p| p.y.is_finite());
    finite
        .map(|p| {
            sum = sum * keep + p.y * (1.0 - keep);
            weight = weight * keep + (1.0 - keep);
            XY {
                x: p.x,
                y: sum / weight,
            }
        })
        .collect()
}

/// A window that suits a run of so many steps: a twentieth of it, between 5 and 100.
pub fn window(points: usize) -> f64 {
    (points as f64 / 20.0).clamp(5.0, 100.0)
}

/// At most two points for each of `columns`: the lowest and the highest, in the order in which they came, so that
/// spikes survive. Short curves stay as they are.
pub fn thin(points: &[XY], columns: usize) -> Vec<XY> {
    let columns = columns.max(1);
    if points.len() <= 2 * columns {
        return points.to_vec();
    }
    let per_column = points.len().div_ceil(columns);
    let extremes = points.chunks(per_column).flat_map(|chunk| {
        let mut low = 0;
        let mut high = 0;
        for (i, p) in chunk.iter().enumerate() {
            if p.y < chunk[low].y {
                low = i;
            }
            if p.y > chunk[high].y {
                high = i;
            }
        }
        let mut picked = vec![low.min(high), low.max(high)];
        picked.dedup();
        picked.into_iter().map(|i| chunk[i])
    });
    extremes.collect()
}

/// The value below which `share` of the finite values lie. `None` without any.
pub fn quantile(values: impl Iterator<Item = f64>, share: f64) -> Option<f64> {
    let mut sorted: Vec<f64> = values.filter(|v| v.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    sorted
        .get((last as f64 * share.clamp(0.0, 1.0)).round() as usize)
        .copied()
}

/// Round numbers from 0 to `max` or a little above, about `wanted` of them: steps of 1, 2 or 5 times a power of ten.
pub fn ticks(max: f64, wanted: usize) -> Vec<f64> {
    if max <= 0.0 || !max.is_finite() {
        return vec![0.0, 1.0];
    }
    let rough = max / wanted.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|m| m * power)
        .into_iter()
        .find(|s| *s >= rough * 0.999);
    let step = step.unwrap_or(10.0 * power);
    let count = (max / step * 0.999_999).ceil() as usize;
    (0..=count).map(|i| i as f64 * step).collect()
}

/// A tick's label with as many decimals as its step needs.
pub fn label(tick: f64, step: f64) -> String {
    let decimals = (-step.log10().floor()).clamp(0.0, 6.0) as usize;
    format!("{tick:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(ys: &[f64]) -> Vec<XY> {
        let points = ys.iter().enumerate();
        points.map(|(i, y)| XY { x: i as f64, y: *y }).collect()
    }

    #[test]
    fn smoothing_starts_at_the_first_value_and_skips_nan() {
        let smoothed = smooth(&curve(&[4.0, f64::NAN, 4.0, 4.0]), 10.0);
        assert_eq!(smoothed.len(), 3);
        assert!(smoothed.iter().all(|p| (p.y - 4.0).abs() < 1e-12));
        let falling = smooth(&curve(&[1.0, 0.0]), 2.0);
        assert!((falling[1].y - 1.0 / 3.0).abs() < 1e-12, "{falling:?}");
    }

    #[test]
    fn thinning_keeps_spikes_order_and_short_curves() {
        let short = curve(&[1.0, 2.0, 3.0]);
        assert_eq!(thin(&short, 600), short);
        let mut ys = vec![0.5; 5000];
        ys[1234] = 9.0;
        ys[4321] = -9.0;
        let thinned = thin(&curve(&ys), 300);
        assert!(thinned.len() <= 600);
        assert!(thinned.iter().any(|p| p.y == 9.0) && thinned.iter().any(|p| p.y == -9.0));
        assert!(thinned.windows(2).all(|w| w[0].x < w[1].x));
    }

    #[test]
    fn ticks_are_round_and_cover_the_range() {
        assert_eq!(ticks(800.0, 4), [0.0, 200.0, 400.0, 600.0, 800.0]);
        assert_eq!(ticks(5.0, 5), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(ticks(0.0, 4), [0.0, 1.0]);
        let fine: Vec<String> = ticks(0.23, 4).iter().map(|t| label(*t, 0.1)).collect();
        assert_eq!(fine, ["0.0", "0.1", "0.2", "0.3"]);
        assert!(ticks(f64::NAN, 3).len() == 2);
    }

    #[test]
    fn a_quantile_ignores_what_is_not_finite() {
        let values = [3.0, 1.0, f64::INFINITY, 2.0];
        assert_eq!(quantile(values.into_iter(), 1.0), Some(3.0));
        assert_eq!(quantile(values.into_iter(), 0.5), Some(2.0));
        assert_eq!(quantile(std::iter::empty(), 0.5), None);
    }
}
