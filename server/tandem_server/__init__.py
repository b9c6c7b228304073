"""The serving pod: front end, admission, residency, and the engines that compute."""
