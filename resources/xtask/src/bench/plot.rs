//! Draws an SVG with a bar for the median of each series and a line for its spread.

use std::fmt::Write;

use super::Series;

/// Height of a row in pixels.
const ROW: usize = 34;
/// Left end and maximum length of the bars in pixels.
const LEFT: f64 = 250.0;
const WIDTH: f64 = 520.0;

/// Draws all series on one scale, below each other.
pub fn bars(series: &[Series], unit: &str) -> String {
    let longest = series.iter().map(|s| s.spread().1).fold(1.0, f64::max);
    let x = |value: f64| LEFT + value / longest * WIDTH;
    let height = (series.len() + 1) * ROW;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"860\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"20\">{unit}: median, minimum to maximum</text>\n"
    );
    for (row, one) in series.iter().enumerate() {
        let y = (row + 1) * ROW;
        let (min, max) = one.spread();
        let fill = if one.name.starts_with("vmm") { "#2a6f97" } else { "#a9a9a9" };
        // Writing to a String cannot fail.
        let _ = writeln!(
            svg,
            "<text x=\"8\" y=\"{text}\">{name}</text>\
             <rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"20\" fill=\"{fill}\"/>\
             <line x1=\"{a:.1}\" x2=\"{b:.1}\" y1=\"{line}\" y2=\"{line}\" stroke=\"black\"/>\
             <text x=\"{label:.1}\" y=\"{text}\">{median:.1}</text>",
            text = y + 15,
            name = one.name,
            width = x(one.median()) - LEFT,
            a = x(min),
            b = x(max),
            line = y + 10,
            label = x(max) + 6.0,
            median = one.median(),
        );
    }
    svg.push_str("</svg>\n");
    svg
}
