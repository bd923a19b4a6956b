"""What the services need from the outside, as small Protocols; chosen by configuration in `app`."""
