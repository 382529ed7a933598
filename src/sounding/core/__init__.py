"""The core: any supported encoder, run at the depth that a selector chooses."""
