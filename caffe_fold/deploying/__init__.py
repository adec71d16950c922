"""The deploy net of a net for training and testing."""
