//! Renderings: what others found out, as text, JSON, SVG and HTML. Nothing is analysed here, and nothing is printed.
