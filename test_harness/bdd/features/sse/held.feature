@own-service
Feature: Reading while nothing moves
  An engine that thinks for long, a connection that breaks meanwhile: the reader goes on where the
  connection broke, with not a token twice and none left out.

  Background:
    Given pool "slow" with 1 engine of 2 slots

  @ORCH-2002 @OC-CTRL-2022
  Scenario: The place in the stream outlives the connection
    Given the engines of "slow" stop after 6 tokens of each task
    When acme submits to "slow"
      | task   | max_tokens |
      | letter | 20         |
    And "letter" is read up to token 4 and the connection breaks
    And "letter" is read up to token 2 and the connection breaks
    And the engines of "slow" go on
    And "letter" is read on
    Then "letter" ends well

  @ORCH-2003 @ORCH-3017
  Scenario: Whoever reads learns that somebody cancelled it
    Given the engines of "slow" stop after 3 tokens of each task
    When acme submits to "slow"
      | task   | max_tokens |
      | letter | 20         |
    And "letter" is read up to token 3 and cancelled
    Then the stream of "letter" ends with
      | event      | end  |
      | canceled   | true |
      | tokens_out | 3    |
    And "letter" reads the same again, from the start
