//! Small drivers, each correct with nothing planted, for the defects that no image format of ours could have.
