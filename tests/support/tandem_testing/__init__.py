"""What tests of several tiers share: clients under load, processes of pods, a running installation."""
