//! What a session is going to hold of a device's memory, known before there is one.

/// Bytes, by what they are for. Each device fills it from the very sizes that its session asks memory for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// With what is kept beside them so that trained ones are exact.
    pub weights: u64,
    /// With their sums, where those are apart.
    pub gradients: u64,
    /// The optimizer's.
    pub moments: u64,
    /// Running ones of the weights.
    pub averages: u64,
    /// Of the program that needs most; all share them.
    pub activations: u64,
    /// Of all programs together.
    pub inputs_and_outputs: u64,
    /// What libraries compute in.
    pub workspace: u64,
    /// Code that the libraries load when it first runs, and what the driver keeps of captured steps.
    pub libraries: u64,
}

/// What a run keeps besides, as it asks for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Running ones of the weights.
    pub averages: bool,
    /// Gradients of several programs are added up.
    pub sums: bool,
}

impl Footprint {
    pub fn total(&self) -> u64 {
        self.parts().into_iter().map(|(_, bytes)| bytes).sum()
    }

    /// In words, for people and logs.
    pub fn parts(&self) -> [(&'static str, u64); 8] {
        [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("moments", self.moments),
            ("averages", self.averages),
            ("activations", self.activations),
            ("inputs and outputs", self.inputs_and_outputs),
            ("workspace", self.workspace),
            ("libraries", self.libraries),
        ]
    }
}
