//! Pictures that are too large to decode at once, in tiles.
//!
//! The decoder's deepest level, with its attention, is small and computed on the whole. Above it everything looks at
//! neighbours alone, but for the statistics of norms, which here are a tile's own: so tiles share a wide border, in which
//! each fades into the next. The border's outermost part, where a tile misses neighbours, is not used at all.

use candle_core::{Device, Tensor};

use super::error::{NetworkError, Result};
use super::networks::{Networks, row_dims, scale, values};
use super::programs::{Map, Task};
use crate::engine::layout::channels_first;
use crate::engine::session::{Data, EngineError};

/// Sides of tiles in latents, tried from the largest that is smaller than the picture.
const SIDES: [usize; 7] = [128, 96, 64, 48, 32, 24, 16];

/// Of a tile's side, at least what it shares with the next: its reciprocal.
const SHARED: usize = 3;
/// Of what is shared, what is not used at either end: its reciprocal.
const UNUSED: usize = 4;

impl Networks {
    /// `z` `[rows, 4, h, w]`, already divided by the scaling factor, to `[rows, 3, 8 h, 8 w]` around -1 to 1, with the
    /// other VAE where there is one. In tiles where there is too little memory for the whole.
    ///
    /// # Errors
    /// What the device answers, and that it has no room for small tiles either.
    pub fn decode(&mut self, z: &Tensor) -> Result<Tensor> {
        let map = Map::of(z)?;
        let mut side = self.tiles.get(&map).copied();
        loop {
            let decoded = match side {
                None => self.decode_whole(z),
                Some(side) => self.decode_in_tiles(z, side),
            };
            let NetworkError::Engine(EngineError::OutOfMemory { .. }) = (match decoded {
                Ok(images) => {
                    self.tiles.extend(side.map(|side| (map, side)));
                    return Ok(images);
                }
                Err(ref error) => error,
            }) else {
                return decoded;
            };
            let at_most = side.unwrap_or(map.height.max(map.width));
            let Some(smaller) = SIDES.into_iter().find(|&side| side < at_most) else {
                return decoded;
            };
            side = Some(smaller);
        }
    }

    /// [`Self::decode`], in tiles of `side` latents at most, whatever memory there is.
    ///
    /// # Errors
    /// What the device answers.
    pub fn decode_in_tiles(&mut self, z: &Tensor, side: usize) -> Result<Tensor> {
        let rows: Result<Vec<Tensor>> = (z.chunk(z.dim(0)?, 0)?.iter())
            .map(|row| self.decode_row_in_tiles(row, side))
            .collect();
        Ok(Tensor::cat(&rows?, 0)?)
    }

    fn decode_row_in_tiles(&mut self, z: &Tensor, side: usize) -> Result<Tensor> {
        let (part, map) = (self.plan.decoder(), Map::of(z)?);
        let (times, channels) = {
            let config = self.plan.vae(part)?;
            (scale(config), config.out_channels)
        };
        let deep = self.program(Task::DecodeDeep { part, map })?;
        self.write_map(deep, "z", &values(z)?, row_dims(z)?)?;
        self.session.run(deep)?;
        let states = self.session.read(deep, "output")?;
        // Its memory is for the tiles now.
        self.give_back(&[])?;

        let [down, across] = [map.height, map.width].map(|len| Cover::new(len, side));
        let tile = Map {
            rows: 1,
            height: down.side,
            width: across.side,
        };
        let up = self.program(Task::DecodeUp { part, map: tile })?;
        let images = map.larger(times);
        let mut sums = vec![0.; images.height * images.width * channels];
        for &top in &down.starts {
            for &left in &across.starts {
                let cut = crop(&states, map, tile, [top, left]);
                self.session.write(up, "states", Data::F32(&cut))?;
                self.session.run(up)?;
                let decoded = self.session.read(up, "output")?;
                let (rows, columns) = (down.shares(top, times), across.shares(left, times));
                for (y, (decoded, row)) in decoded.chunks_exact(columns.len() * channels).zip(&rows).enumerate() {
                    let start = ((top * times + y) * images.width + left * times) * channels;
                    let sums = sums[start..].chunks_exact_mut(channels);
                    for ((sums, decoded), column) in sums.zip(decoded.chunks_exact(channels)).zip(&columns) {
                        let share = row * column;
                        (sums.iter_mut().zip(decoded)).for_each(|(sum, value)| *sum += share * value);
                    }
                }
            }
        }
        let sums = channels_first(&sums, channels, images.height * images.width);
        let dims = (1, channels, images.height, images.width);
        Ok(Tensor::from_vec(sums, dims, &Device::Cpu)?)
    }
}

/// A part of a map that lies channels last.
fn crop(states: &[f32], map: Map, tile: Map, [top, left]: [usize; 2]) -> Vec<f32> {
    let channels = states.len() / (map.height * map.width);
    let rows = (top..top + tile.height).map(|y| (y * map.width + left) * channels);
    rows.flat_map(|start| &states[start..start + tile.width * channels])
        .copied()
        .collect()
}

/// Tiles along one side of a map, all of one length and evenly spread.
struct Cover {
    side: usize,
    starts: Vec<usize>,
}

impl Cover {
    fn new(len: usize, side: usize) -> Self {
        let side = side.min(len);
        let last = len - side;
        let gaps = last.div_ceil(side - side / SHARED);
        Self {
            side,
            starts: (0..=gaps).map(|tile| tile * last / gaps.max(1)).collect(),
        }
    }

    /// Of each pixel along the tile at `start`, `times` pixels to a latent, its share in the picture. Those of all tiles
    /// come to 1.
    fn shares(&self, start: usize, times: usize) -> Vec<f32> {
        let pixels = start * times..(start + self.side) * times;
        let share = |pixel| {
            let all: f32 = self.starts.iter().map(|&other| self.weight(other, times, pixel)).sum();
            self.weight(start, times, pixel) / all
        };
        pixels.map(share).collect()
    }

    /// What `pixel` of the tile at `start` counts: all inside, less towards an edge that another tile reaches beyond, and
    /// nothing near it.
    fn weight(&self, start: usize, times: usize, pixel: usize) -> f32 {
        let from_edge = |edge: usize, is_inner: bool| match is_inner {
            true => (edge as f32 - (pixel as f32 + 0.5)).abs(),
            false => f32::INFINITY,
        };
        let end = start + self.side;
        if !(start * times..end * times).contains(&pixel) {
            return 0.;
        }
        let (first, last) = (self.starts.first(), self.starts.last());
        let distance =
            from_edge(start * times, Some(&start) != first).min(from_edge(end * times, Some(&start) != last));
        let shared = (self.side / SHARED * times) as f32;
        let unused = shared / UNUSED as f32;
        ((distance - unused) / (shared - 2. * unused)).clamp(0., 1.)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_everything_and_share_it_out() {
        for (len, side) in [(64, 48), (64, 24), (33, 16), (17, 16), (100, 24), (10, 16), (16, 16)] {
            let cover = Cover::new(len, side);
            let mut sums = vec![0.; len * 8];
            for &start in &cover.starts {
                let shares = cover.shares(start, 8);
                (sums[start * 8..].iter_mut().zip(&shares)).for_each(|(sum, share)| *sum += share);
            }
            assert!(
                sums.iter().all(|sum| (sum - 1.).abs() < 1e-6),
                "{len} by {side}: {sums:?}"
            );
            let wide = |pair: &[usize]| pair[0] + cover.side - pair[1] >= cover.side / SHARED;
            assert!(cover.starts.windows(2).all(wide), "{len} by {side}: {:?}", cover.starts);
        }
        assert_eq!(Cover::new(64, 48).starts, [0, 16]);
        assert_eq!(Cover::new(10, 16).starts, [0]);
    }
}
