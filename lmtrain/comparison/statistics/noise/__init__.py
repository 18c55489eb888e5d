"""One model of the noise between seeds for all settings, and the differences of settings that it tests."""
