"""The demo page: any two methods of the registry side by side, from the same noise. Needs the extra `demo`."""
