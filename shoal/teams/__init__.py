"""Policies made of policies: opponents, scripts, and tables of who beats whom."""
