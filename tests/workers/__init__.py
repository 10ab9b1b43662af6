"""Programs that tests run as processes of their own: with more devices, or to be killed."""
