//! The figure that shows what DreamBooth did: a row a subject, the same seeds side by side, the meters' numbers below.

use std::path::Path;

use embedded_graphics::geometry::{OriginDimensions, Point, Size};
use embedded_graphics::mono_font::ascii::{FONT_9X15, FONT_9X15_BOLD};
use embedded_graphics::mono_font::{MonoFont, MonoTextStyle};
use embedded_graphics::pixelcolor::{Rgb888, RgbColor};
use embedded_graphics::prelude::{DrawTarget, Drawable, Pixel};
use embedded_graphics::text::{Baseline, Text};
use image::RgbImage;

use crate::autoencoder::{Reconstruction, SIDE_PX, mean_psnr_db};
use crate::dreambooth::{self, Outcome, Subject};

const GAP_PX: u32 = 4;
/// Between groups of pictures.
const GROUP_GAP_PX: u32 = 28;
const MARGIN_PX: u32 = 20;
const LINE_PX: u32 = 19;
const HEADER_LINES: u32 = 2;

/// Pictures that belong together, and the lines below them.
struct Group {
    pictures: Vec<RgbImage>,
    lines: Vec<String>,
}

/// One subject.
pub struct Row {
    groups: Vec<Group>,
}

/// What stands above each group: its pictures' prompt, unless it is that of the group before; who drew them; how many.
const HEADERS: [(&str, &str, usize); 6] = [
    ("a photo", "and by the autoencoder", 2),
    ("photo of zwx CLASS", "untrained", 1),
    ("", "trained", 3),
    ("photo of a CLASS", "untrained", 2),
    ("photo of a CLASS", "with prior preservation", 2),
    ("photo of a CLASS", "without", 2),
];

impl Row {
    /// Draws what the figure shows of a subject. Of photos that may not be copied only the name is shown, and how well the
    /// autoencoder gives them back (mean PSNR).
    ///
    /// # Errors
    /// When a model does not draw, or a picture cannot be read.
    pub fn draw(
        subject: &Subject,
        photos: &[Reconstruction],
        shows_photo: bool,
        with: &Outcome,
        without: &Outcome,
        scratch: &Path,
    ) -> anyhow::Result<Self> {
        let class = |model: &Path, out: &str| dreambooth::draw(model, &subject.class_prompt(), 2, &scratch.join(out));
        let samples = |step: u32, count: usize| (0..count).map(|i| with.sample(step, i)).collect::<anyhow::Result<_>>();
        let (before, after, bare) = (with.before(), with.after(), without.after());
        let of_class = |reading: dreambooth::Reading| {
            vec![format!(
                "drift {:.2}  diversity {:.2}",
                reading.drift, reading.diversity
            )]
        };
        let psnr_db = mean_psnr_db(photos);
        let first = photos.first().filter(|_| shows_photo);
        let groups = vec![
            Group {
                pictures: first.map_or_else(Vec::new, |first| vec![first.photo.clone(), first.picture.clone()]),
                lines: vec![format!("{}  {psnr_db:.1} dB", subject.name)],
            },
            Group {
                pictures: samples(0, 1)?,
                lines: vec![format!("likeness {:.2}", before.likeness)],
            },
            Group {
                pictures: samples(after.step, 3)?,
                lines: vec![format!("likeness {:.2}", after.likeness)],
            },
            Group {
                pictures: class(Path::new(app::recipe::STARTER), "class-before")?,
                lines: of_class(before),
            },
            Group {
                pictures: class(&with.model()?, "class-with")?,
                lines: of_class(after),
            },
            Group {
                pictures: class(&without.model()?, "class-without")?,
                lines: of_class(bare),
            },
        ];
        Ok(Self { groups })
    }
}

/// Lays the rows out.
///
/// # Errors
/// None that a picture in memory gives.
pub fn compose(rows: &[Row]) -> anyhow::Result<RgbImage> {
    let group_px = |pictures: usize| pictures as u32 * (SIDE_PX + GAP_PX) - GAP_PX;
    let width = HEADERS.iter().map(|(_, _, n)| group_px(*n) + GROUP_GAP_PX).sum::<u32>() - GROUP_GAP_PX;
    let row_px = SIDE_PX + GAP_PX + LINE_PX + GAP_PX * 3;
    let height = HEADER_LINES * LINE_PX + rows.len() as u32 * row_px;
    let mut canvas = Canvas(RgbImage::from_pixel(
        width + 2 * MARGIN_PX,
        height + 2 * MARGIN_PX,
        image::Rgb([255; 3]),
    ));
    let mut left = MARGIN_PX;
    for (column, (prompt, by, pictures)) in HEADERS.iter().enumerate() {
        canvas.write(prompt, (left, MARGIN_PX), &FONT_9X15_BOLD);
        canvas.write(by, (left, MARGIN_PX + LINE_PX), &FONT_9X15);
        let mut top = MARGIN_PX + HEADER_LINES * LINE_PX;
        for group in rows.iter().filter_map(|row| row.groups.get(column)) {
            let mut x = left;
            for picture in &group.pictures {
                image::imageops::replace(&mut canvas.0, picture, x.into(), top.into());
                x += SIDE_PX + GAP_PX;
            }
            // Without a picture its line stands in its place.
            let below = if group.pictures.is_empty() {
                SIDE_PX / 2
            } else {
                SIDE_PX + GAP_PX
            };
            for (line, text) in (0..).zip(&group.lines) {
                canvas.write(text, (left, top + below + line * LINE_PX), &FONT_9X15);
            }
            top += row_px;
        }
        left += group_px(*pictures) + GROUP_GAP_PX;
    }
    Ok(canvas.0)
}

/// A picture that text can be drawn on.
struct Canvas(RgbImage);

impl Canvas {
    fn write(&mut self, text: &str, (x, y): (u32, u32), font: &MonoFont) {
        let style = MonoTextStyle::new(font, Rgb888::BLACK);
        let Ok(_end) = Text::with_baseline(text, Point::new(x as i32, y as i32), style, Baseline::Top).draw(self);
    }
}

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Size::new(self.0.width(), self.0.height())
    }
}

impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = std::convert::Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Self::Error> {
        for Pixel(Point { x, y }, color) in pixels {
            let place = u32::try_from(x).ok().zip(u32::try_from(y).ok());
            if let Some(pixel) = place.and_then(|(x, y)| self.0.get_pixel_mut_checked(x, y)) {
                *pixel = image::Rgb([color.r(), color.g(), color.b()]);
            }
        }
        Ok(())
    }
}
