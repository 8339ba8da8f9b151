"""Options of the losses of TRL and ms-swift, converted to grpokit's: for `convert-config`, and for TRL's trainer itself."""
